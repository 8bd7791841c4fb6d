"""What the stand-ins of object stores share: buckets in memory, behind HTTP on the loopback."""

import contextlib
import dataclasses
import http.server
import os
import sys
import threading
import urllib.parse
import uuid
from collections.abc import Iterator, Mapping

import fsspec

# By scheme: the library, the module of the stand-in, the extra.
KINDS = {"gs": ("gcsfs", "fake_gcs", "gcs"), "s3": ("s3fs", "fake_s3", "s3")}
PAGE = 7  # entries of a listing at once, at most: few, so that clients have to go on


@dataclasses.dataclass
class Object:
    data: bytes
    generation: int
    content_type: str = "application/octet-stream"
    etag: str = ""


class Store(http.server.ThreadingHTTPServer):
    """Buckets in memory. ``refuse(method, bucket, name)`` gives a status in place of an answer."""

    daemon_threads = True
    scheme: str
    settings: Mapping[str, str]  # of the environment, beside the address

    def __init__(self, handler: type[http.server.BaseHTTPRequestHandler]):
        super().__init__(("127.0.0.1", 0), handler)
        self.lock = threading.RLock()
        self.buckets: dict[str, dict[str, Object]] = {}
        self.uploads: dict[str, dict] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.generation = 1000
        self.refuse = lambda method, bucket, name: 0

    def handle_error(self, *_):
        pass  # a client that no longer wants the answer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def put(self, bucket: str, name: str, data: bytes, content_type: str = "") -> Object:
        self.generation += 1
        made = Object(data, self.generation, content_type or "application/octet-stream")
        self.buckets[bucket][name] = made
        return made

    def listed(self, bucket: str, query: Mapping[str, str]) -> tuple[list[str], set[str]]:
        """Sorted names and prefixes below a prefix, and which of them are prefixes."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        names, prefixes = [], set()
        for name in self.buckets[bucket]:
            rest = name.removeprefix(prefix)
            if not name.startswith(prefix):
                continue
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                names.append(name)
        return sorted([*names, *prefixes]), prefixes


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for an acknowledgement
    wbufsize = -1

    def log_message(self, *_):
        pass

    def handle_expect_100(self) -> bool:
        going_on = super().handle_expect_100()
        self.wfile.flush()
        return going_on

    def answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] = {}) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD" and status not in (204, 304):
            self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def query(self) -> dict[str, str]:
        url = urllib.parse.urlsplit(self.path)
        return dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))

    def send_data(self, data: bytes, headers: Mapping[str, str]) -> None:
        """All of an object, or the range that is asked for."""
        asked = self.headers.get("Range")
        if not asked:
            return self.answer(200, data, headers)
        first, last = asked.removeprefix("bytes=").split("-")
        size = len(data)
        if first == "":
            first, last = max(0, size - int(last)), size - 1
        first, last = int(first), min(int(last) if last else size - 1, size - 1)
        if first >= size:
            return self.answer(416, b"", {"Content-Range": f"bytes */{size}"})
        headers = {**headers, "Content-Range": f"bytes {first}-{last}/{size}"}
        self.answer(206, data[first : last + 1], headers)


@contextlib.contextmanager
def serving(server: Store, *buckets: str) -> Iterator[Store]:
    """Runs it with these empty buckets, for the whole process and its children."""
    server.buckets = {name: {} for name in buckets}
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    before = {name: os.environ.get(name) for name in server.settings}
    os.environ.update(server.settings)
    _forget_others()
    try:
        yield server
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        server.shutdown()
        thread.join()
        server.server_close()


def _forget_others() -> None:
    """These libraries keep file systems, with the address of the server they were made for."""
    for scheme, (library, _, _) in KINDS.items():
        if library in sys.modules:
            fsspec.get_filesystem_class(scheme).clear_instance_cache()
    if "etils.epath.backend" in sys.modules:  # keeps them once more, and has no way to forget
        sys.modules["etils.epath.backend"]._FileSystemSpecBackend._get_filesystem.cache_clear()


def new_place(server: Store) -> str:
    """An empty folder of the bucket."""
    return f"{server.scheme}://bucket/{uuid.uuid4().hex}/run"
