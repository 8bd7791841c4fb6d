"""A small stand-in for the JSON API of Google Cloud Storage, on the loopback, in this process.

What tensorstore (TENSORSTORE_GCS_HTTP_URL), gcsfs and google-cloud-storage (STORAGE_EMULATOR_HOST)
ask for: objects with generations, checksums and preconditions; listing; three ways of uploading.
"""

import base64
import email.parser
import json
import re
import urllib.parse

import fake_store
import google_crc32c


class Server(fake_store.Store):
    scheme = "gs"

    def __init__(self):
        super().__init__(Handler)
        self.settings = {
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "STORAGE_EMULATOR_HOST": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",  # tensorstore looks for no other credentials
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks over gRPC, not stood in for
        }

    def describe(self, bucket: str, name: str) -> dict:
        found = self.buckets[bucket][name]
        crc = google_crc32c.value(found.data).to_bytes(4, "big")
        return {
            "kind": "storage#object",
            "id": f"{bucket}/{name}/{found.generation}",
            "name": name,
            "bucket": bucket,
            "generation": str(found.generation),
            "metageneration": "1",
            "size": str(len(found.data)),
            "contentType": found.content_type,
            "crc32c": base64.b64encode(crc).decode(),
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
            "storageClass": "STANDARD",
        }


class Handler(fake_store.Handler):
    server: Server

    def _answer(self, status: int, body: bytes | dict = b"", headers: dict | None = None) -> None:
        if isinstance(body, dict):
            body = json.dumps(body).encode()
            headers = {"Content-Type": "application/json", **(headers or {})}
        self.answer(status, body, headers or {})

    def _error(self, status: int, message: str) -> None:
        self._answer(status, {"error": {"code": status, "message": message}})

    def _handle(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = self.query()
        body = self.body()
        parts = url.path.strip("/").split("/")
        with self.server.lock:
            upload = "upload" in parts
            if "b" not in parts:
                return self._error(404, f"no such method {self.path}")
            after = parts[parts.index("b") + 1 :]
            bucket = urllib.parse.unquote(after[0]) if after else ""
            name = urllib.parse.unquote("/".join(after[2:])) if len(after) > 2 else ""
            named = name or query.get("name", "")
            self.server.requests.append((self.command, bucket, named))
            if status := self.server.refuse(self.command, bucket, named):
                return self._error(status, "the test says so")
            if bucket not in self.server.buckets:
                return self._error(404, "The specified bucket does not exist.")
            if upload:
                return self._upload(bucket, query, body)
            if len(after) == 1:
                return self._answer(
                    200,
                    {
                        "kind": "storage#bucket",
                        "name": bucket,
                        "id": bucket,
                        "location": "US",
                        "storageClass": "STANDARD",
                    },
                )
            if len(after) == 2 and after[1] == "storageLayout":
                return self._answer(200, {"location": "US", "locationType": "multi-region"})
            if not name:
                return self._list(bucket, query)
            if "/rewriteTo/b/" in name:
                return self._copy(bucket, *url.path.split("/o/", 1)[1].split("/rewriteTo/b/"))
            if "/moveTo/o/" in name:
                source, target = url.path.split("/o/", 1)[1].split("/moveTo/o/")
                return self._copy(bucket, source, f"{bucket}/o/{target}", move=True)
            return self._object(bucket, name, query)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = _handle

    def _condition_fails(self, bucket: str, name: str, query: dict) -> bool:
        found = self.server.buckets[bucket].get(name)
        generation = found.generation if found else 0
        if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != generation:
            return True
        return "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == generation

    def _object(self, bucket: str, name: str, query: dict) -> None:
        found = self.server.buckets[bucket].get(name)
        if self.command == "DELETE":
            if found is None:
                return self._error(404, f"No such object: {bucket}/{name}")
            if self._condition_fails(bucket, name, query):
                return self._error(412, "precondition")
            del self.server.buckets[bucket][name]
            return self._answer(204)
        if found is None:
            return self._error(404, f"No such object: {bucket}/{name}")
        if self._condition_fails(bucket, name, query):
            return self._answer(304 if "ifGenerationNotMatch" in query else 412)
        if query.get("alt") != "media":
            return self._answer(200, self.server.describe(bucket, name))
        headers = {
            "x-goog-generation": str(found.generation),
            "x-goog-hash": f"crc32c={self.server.describe(bucket, name)['crc32c']}",
            "Content-Type": found.content_type,
        }
        self.send_data(found.data, headers)

    def _list(self, bucket: str, query: dict) -> None:
        listed, prefixes = self.server.listed(bucket, query)
        first, last = query.get("startOffset", ""), query.get("endOffset") or None
        listed = [name for name in listed if name >= first and (last is None or name < last)]
        start = int(query.get("pageToken", 0))
        end = start + min(int(query.get("maxResults", 1000)), fake_store.PAGE)
        page = listed[start:end]
        items = [self.server.describe(bucket, n) for n in page if n not in prefixes]
        answer = {"kind": "storage#objects", "items": items}
        answer["prefixes"] = [n for n in page if n in prefixes]
        if end < len(listed):
            answer["nextPageToken"] = str(end)
        self._answer(200, answer)

    def _copy(self, bucket: str, source: str, target: str, move: bool = False) -> None:
        source = urllib.parse.unquote(source)
        to, name = map(urllib.parse.unquote, target.split("/o/", 1))
        if source not in self.server.buckets[bucket]:
            return self._error(404, f"No such object: {bucket}/{source}")
        self.server.put(to, name, self.server.buckets[bucket][source].data)
        made = self.server.describe(to, name)
        if move:
            del self.server.buckets[bucket][source]
            return self._answer(200, made)
        size = made["size"]
        self._answer(
            200,
            {
                "kind": "storage#rewriteResponse",
                "done": True,
                "resource": made,
                "objectSize": size,
                "totalBytesRewritten": size,
            },
        )

    def _upload(self, bucket: str, query: dict, body: bytes) -> None:
        kind, name = query.get("uploadType"), query.get("name", "")
        if kind == "multipart":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            boundary = email.parser.BytesParser().parsebytes(head).get_boundary().encode()
            about, data = (
                re.split(b"\r?\n\r?\n", part, maxsplit=1)[1]
                for part in body.split(b"--" + boundary)[1:3]
            )
            name = name or json.loads(about)["name"]
            data = data.removesuffix(b"\n").removesuffix(b"\r")
        elif kind == "resumable" and "upload_id" not in query:
            name = name or json.loads(body or b"{}")["name"]
            key = str(len(self.server.uploads) + 1)
            self.server.uploads[key] = {"name": name, "data": b""}
            where = f"{self.server.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable"
            return self._answer(200, b"", {"Location": f"{where}&upload_id={key}"})
        elif kind == "resumable":
            going = self.server.uploads[query["upload_id"]]
            going["data"] += body
            name, data = going["name"], going["data"]
            total = self.headers.get("Content-Range", "/*").rpartition("/")[2]
            if total == "*" or int(total) > len(data):
                return self._answer(308, b"", {"Range": f"bytes=0-{len(data) - 1}"})
        else:
            data = body
        if self._condition_fails(bucket, name, query):
            return self._error(412, "precondition")
        self.server.put(bucket, name, data)
        self._answer(200, self.server.describe(bucket, name))
