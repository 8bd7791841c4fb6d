"""A small stand-in for the REST API of S3, on the loopback, in this process.

What tensorstore and botocore (under s3fs) ask for: objects with ETags, ranges and preconditions;
listing in pages; deleting one or many; copying; uploads in parts. Every request but the question
for the region must be signed with the right key for the right region; signatures are not computed.
"""

import hashlib
import re
import urllib.parse
import xml.etree.ElementTree as ET
from xml.sax.saxutils import escape

import fake_store

KEY, REGION = "the-key", "eu-test-1"
CODES = {301: "PermanentRedirect", 400: "InvalidRequest", 401: "InvalidAccessKeyId"}
CODES |= {403: "AccessDenied", 404: "NoSuchKey", 412: "PreconditionFailed"}


class Server(fake_store.Store):
    scheme = "s3"

    def __init__(self):
        super().__init__(Handler)
        self.settings = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }
        self.md5_etags = True  # not so in buckets that are encrypted with keys of one's own

    def etag(self, bucket: str, name: str) -> str:
        found = self.buckets[bucket][name]
        if found.etag:
            return found.etag
        salt = b"" if self.md5_etags else str(found.generation).encode()
        return f'"{hashlib.md5(found.data + salt).hexdigest()}"'


class Handler(fake_store.Handler):
    server: Server

    def _xml(self, kind: str, inside: str, status: int = 200) -> None:
        text = f'<{kind} xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{inside}</{kind}>'
        self.answer(status, text.encode(), {"Content-Type": "application/xml"})

    def _error(self, status: int, code: str = "", message: str = "the test says so") -> None:
        code = code or CODES.get(status, "InternalError")
        text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        headers = {"x-amz-bucket-region": REGION, "Content-Type": "application/xml"}
        self.answer(status, text.encode(), headers)

    def _signed_wrongly(self) -> bool:
        """Answers a request that is not signed with our key for our region."""
        found = re.search(r"Credential=([^/]+)/\d+/([^/]+)/", self.headers.get("Authorization", ""))
        if not found:
            self._error(403, "AccessDenied", "not signed")
        elif found[1] != KEY:
            self._error(403, "InvalidAccessKeyId", "unknown key")
        elif found[2] != REGION:
            message = f"the region '{found[2]}' is wrong; expecting '{REGION}'"
            self._error(400, "AuthorizationHeaderMalformed", message)
        else:
            return False
        return True

    def _handle(self) -> None:
        bucket, _, name = urllib.parse.urlsplit(self.path).path.lstrip("/").partition("/")
        bucket, name, query = urllib.parse.unquote(bucket), urllib.parse.unquote(name), self.query()
        body = self.body()
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            body = _unchunk(body)
        with self.server.lock:
            if self._signed_wrongly():
                return
            self.server.requests.append((self.command, bucket, name))
            if status := self.server.refuse(self.command, bucket, name):
                return self._error(status)
            if bucket not in self.server.buckets:
                return self._error(404, "NoSuchBucket", "The specified bucket does not exist")
            if self.command == "POST" and "delete" in query:
                return self._delete_many(bucket, body)
            if "uploads" in query or "uploadId" in query:
                return self._upload(bucket, name, query, body)
            if name:
                return self._object(bucket, name, body)
            if self.command == "HEAD":
                return self.answer(200, b"", {"x-amz-bucket-region": REGION})
            if query.get("list-type") == "2":
                return self._list(bucket, query)
            self._error(501, "NotImplemented", self.path)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _handle

    def _condition_fails(self, bucket: str, name: str) -> bool:
        there = name in self.server.buckets[bucket]
        etag = self.server.etag(bucket, name) if there else None
        asked, denied = self.headers.get("If-Match"), self.headers.get("If-None-Match")
        return (
            asked is not None and asked != etag or
            denied is not None and (there if denied == "*" else denied == etag)
        )  # fmt: skip

    def _object(self, bucket: str, name: str, body: bytes) -> None:
        objects = self.server.buckets[bucket]
        if self.command == "DELETE":
            objects.pop(name, None)
            return self.answer(204)
        if self.command not in ("PUT", "GET", "HEAD"):
            return self._error(405)
        if self.command != "PUT" and name not in objects:
            return self._error(404)
        if self._condition_fails(bucket, name):
            reading = self.command != "PUT" and "If-None-Match" in self.headers
            return self.answer(304) if reading else self._error(412)
        if self.command == "PUT":
            if source := self.headers.get("x-amz-copy-source"):
                of, _, key = urllib.parse.unquote(source).lstrip("/").partition("/")
                if key not in self.server.buckets[of]:
                    return self._error(404)
                self.server.put(bucket, name, self.server.buckets[of][key].data)
                etag = self.server.etag(bucket, name)
                return self._xml("CopyObjectResult", f"<ETag>{escape(etag)}</ETag>")
            self.server.put(bucket, name, body)
            return self.answer(200, b"", {"ETag": self.server.etag(bucket, name)})
        headers = {"ETag": self.server.etag(bucket, name), "Content-Type": "binary/octet-stream"}
        headers["Last-Modified"] = "Thu, 01 Jan 2026 00:00:00 GMT"
        self.send_data(objects[name].data, headers)

    def _list(self, bucket: str, query: dict) -> None:
        listed, prefixes = self.server.listed(bucket, query)
        after = query.get("continuation-token", query.get("start-after", ""))
        listed = [name for name in listed if name > after]
        page = listed[: min(int(query.get("max-keys", 1000)), fake_store.PAGE)]
        coded = query.get("encoding-type") == "url"
        said = urllib.parse.quote if coded else escape
        inside = f"<Name>{bucket}</Name><KeyCount>{len(page)}</KeyCount>"
        inside += "<EncodingType>url</EncodingType>" if coded else ""
        inside += f"<IsTruncated>{str(len(page) < len(listed)).lower()}</IsTruncated>"
        if len(page) < len(listed):
            inside += f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>"
        for name in page:
            if name in prefixes:
                inside += f"<CommonPrefixes><Prefix>{said(name)}</Prefix></CommonPrefixes>"
                continue
            found = self.server.buckets[bucket][name]
            inside += f"<Contents><Key>{said(name)}</Key><Size>{len(found.data)}</Size>"
            inside += f"<ETag>{escape(self.server.etag(bucket, name))}</ETag>"
            inside += "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        self._xml("ListBucketResult", inside)

    def _delete_many(self, bucket: str, body: bytes) -> None:
        """One answer for all of them, errors included, with status 200."""
        inside = ""
        for entry in ET.fromstring(body).iter():
            if not entry.tag.endswith("Key"):
                continue
            name = entry.text or ""
            self.server.requests.append(("DELETE", bucket, name))
            if self.server.refuse("DELETE", bucket, name):
                inside += f"<Error><Key>{escape(name)}</Key><Code>AccessDenied</Code></Error>"
            else:
                self.server.buckets[bucket].pop(name, None)
        self._xml("DeleteResult", inside)

    def _upload(self, bucket: str, name: str, query: dict, body: bytes) -> None:
        uploads = self.server.uploads
        if "uploads" in query:
            key = f"upload-{len(uploads)}"
            uploads[key] = {}
            return self._xml("InitiateMultipartUploadResult", f"<UploadId>{key}</UploadId>")
        parts = uploads[query["uploadId"]]
        if self.command == "PUT":
            parts[int(query["partNumber"])] = body
            return self.answer(200, b"", {"ETag": f'"{hashlib.md5(body).hexdigest()}"'})
        if self.command == "DELETE":
            del uploads[query["uploadId"]]
            return self.answer(204)
        ordered = [parts[number] for number in sorted(parts)]
        made = self.server.put(bucket, name, b"".join(ordered))
        whole = hashlib.md5(b"".join(hashlib.md5(part).digest() for part in ordered)).hexdigest()
        made.etag = f'"{whole}-{len(ordered)}"'
        self._xml("CompleteMultipartUploadResult", f"<ETag>{escape(made.etag)}</ETag>")


def _unchunk(body: bytes) -> bytes:
    """The bytes of a body of chunks that carry signatures, with checksums behind them."""
    parts = []
    while body:
        head, _, rest = body.partition(b"\r\n")
        size = int(head.split(b";")[0], 16)
        if not size:
            break
        parts.append(rest[:size])
        body = rest[size + 2 :]
    return b"".join(parts)
