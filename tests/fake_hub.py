"""A stand-in for a model hub on the loopback: the addresses, headers and answers of the real one.

    GET  /api/models/USER/REPO/revision/REVISION    {"id", "sha", "siblings", ...}
    GET  /api/models/USER/REPO/tree/SHA             [{"type", "path", "size", "oid", "lfs"}]
    HEAD, GET  /USER/REPO/resolve/SHA/FILE          small files at once, large ones by /cdn/
    GET  /cdn/SHA256                                with ranges
    POST /api/repos/create                          {"url"}; 409 where it is there
    POST /api/models/USER/REPO/preupload/REVISION   {"files": [{"path", "uploadMode"}]}
    POST /USER/REPO.git/info/lfs/objects/batch      {"objects": [{"oid", "actions"}]}
    PUT  /cdn/SHA256
    POST /api/models/USER/REPO/commit/REVISION      JSON lines to {"commitUrl", "commitOid"}

What goes wrong is set on `FakeHub`.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import pathlib
import threading
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

SHA = "0123456789abcdef0123456789abcdef01234567"
LARGE = "model.safetensors"  # in the hub's large-file storage


class FakeHub(http.server.ThreadingHTTPServer):
    """One repository, ``repo`` with the files of ``folder``.

    Attributes:
      token: that a reader must have; "" for a public repository.
      gated: readers must have accepted its terms, and have not.
      truncated: bytes of a connection to a large file after which it is closed; 0 = never.
      stalls: connections to a large file that say nothing after their first bytes.
      broken: status of every answer, such as 503; 0 = none.
      writer: the token that may write; "" for none.
      arrived: large files by SHA-256, before they are committed.
      asked: method and path of every request; ranges: those of the large file.
    """

    daemon_threads = True

    def __init__(self, folder: pathlib.Path, repo: str = "someone/names"):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repo, self.token, self.gated = repo, "", False
        self.truncated = self.stalls = self.broken = 0
        self.writer, self.arrived = "", dict[str, bytes]()
        self.asked: list[str] = []
        self.ranges: list[str | None] = []
        paths = [path for path in folder.rglob("*") if path.is_file()]
        self.files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def other_host(self) -> str:
        """Large files are elsewhere, as those of the real one."""
        return f"http://localhost:{self.server_address[1]}"


@contextlib.contextmanager
def serving(folder: pathlib.Path) -> Iterator[FakeHub]:
    hub = FakeHub(folder)
    threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub  # pyright: ignore

    def log_message(self, *words: Any) -> None:
        del words

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.write()

    def do_PUT(self) -> None:
        self.write()

    def write(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub.asked.append(f"{self.command} {path}")
        if hub.broken:
            return self.say(hub.broken, b"out of order")
        if path.startswith("/cdn/"):
            hub.arrived[path.removeprefix("/cdn/")] = sent
            return self.say(200, b"")
        if self.headers.get("Authorization") != f"Bearer {hub.writer}":
            return self.refuse(403 if self.headers.get("Authorization") else 401, "Forbidden")
        if path == "/api/validate-yaml":
            return self.json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self.json({"url": f"{hub.endpoint}/{hub.repo}"})
        if path.endswith("/objects/batch"):
            found = json.loads(sent)["objects"]
            for one in found:
                one["actions"] = {"upload": {"href": f"{hub.endpoint}/cdn/{one['oid']}"}}
            return self.json({"transfer": "basic", "objects": found})
        if not path.endswith("/main"):
            return self.refuse(404, "RevisionNotFound")
        if "/preupload/" in path:
            modes = {name["path"]: name["path"] == LARGE for name in json.loads(sent)["files"]}
            files = [
                {"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
                for name, large in modes.items()
            ]
            return self.json({"files": files})
        for line in map(json.loads, sent.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                hub.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                hub.files[value["path"]] = hub.arrived[value["oid"]]
        self.json({"commitUrl": f"{hub.endpoint}/{hub.repo}/commit/{SHA}", "commitOid": SHA})

    def answer(self) -> None:
        hub, path = self.server, urllib.parse.unquote(self.path.partition("?")[0])
        hub.asked.append(f"{self.command} {path}")
        if hub.broken:
            return self.say(hub.broken, b"out of order")
        if path.startswith("/cdn/"):
            return self.large()
        allowed = not hub.token or self.headers.get("Authorization") == f"Bearer {hub.token}"
        if hub.repo not in path or not allowed:
            return self.refuse(
                401 if not self.headers.get("Authorization") else 404, "RepoNotFound"
            )
        if hub.gated and "/resolve/" in path:
            return self.refuse(403, "GatedRepo")
        rest = path.partition(hub.repo)[2].strip("/").split("/", 2)
        if rest[0] in ("revision", "tree", "resolve") and rest[1] not in ("main", "v1", SHA):
            return self.refuse(404, "RevisionNotFound")
        if path.startswith("/api/") and rest[0] == "tree":
            return self.json([self.entry(name) for name in sorted(hub.files)])
        if path.startswith("/api/"):
            siblings = [{"rfilename": name} for name in sorted(hub.files)]
            about = {"private": bool(hub.token), "tags": [], "downloads": 0, "disabled": False}
            return self.json({"id": hub.repo, "sha": SHA, "siblings": siblings, **about})
        if rest[2] not in hub.files:
            return self.refuse(404, "EntryNotFound")
        content, named = hub.files[rest[2]], {"X-Repo-Commit": SHA}
        if rest[2] != LARGE:
            return self.say(200, content, named | {"ETag": f'"{_blob(content)}"'})
        digest = hashlib.sha256(content).hexdigest()
        named |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        self.say(302, b"", named | {"Location": f"{hub.other_host}/cdn/{digest}"})

    def entry(self, name: str) -> dict:
        content = self.server.files[name]
        entry = {"type": "file", "path": name, "size": len(content), "oid": _blob(content)}
        if name == LARGE:
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
        return entry

    def large(self) -> None:
        hub, content = self.server, self.server.files[LARGE]
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        if self.command == "GET":
            hub.ranges.append(asked)
        head = {"Accept-Ranges": "bytes", "Content-Length": str(len(content) - start)}
        if asked:
            head["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.begin(206 if asked else 200, head)
        if self.command == "HEAD":
            return
        if hub.stalls:
            hub.stalls -= 1
            self.wfile.write(content[start : start + 100])
            self.wfile.flush()
            time.sleep(3)
            self.close_connection = True
        elif hub.truncated:
            self.wfile.write(content[start : start + hub.truncated])
            self.close_connection = True
        else:
            self.wfile.write(content[start:])

    def json(self, value: Any) -> None:
        self.say(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, code: str) -> None:
        self.say(status, b'{"error": "no"}', {"X-Error-Code": code})

    def say(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.begin(status, {"Content-Length": str(len(content)), **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(content)

    def begin(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _blob(content: bytes) -> str:
    """The number that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
