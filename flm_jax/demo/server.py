"""A folder on the loopback: nobody else can reach it."""

import functools
import http.server
import os
import pathlib
import sys
import webbrowser

from flm_jax.errors import UserError

HOST = "127.0.0.1"


class _Files(http.server.SimpleHTTPRequestHandler):
    """Files with the types that browsers insist on, whatever this machine's tables say."""

    extensions_map = {
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".css": "text/css",
        ".json": "application/json",
        ".wasm": "application/wasm",
    }

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: the terminal has the address."""

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")  # the next demo may have the same port
        super().end_headers()


class Server:
    """Of a folder, which may be made later. It takes its port at once; 0 is any free one.

    Raises UserError if the port is taken.
    """

    def __init__(self, folder: pathlib.Path, port: int = 0):
        handler = functools.partial(_Files, directory=str(folder))
        try:
            self._server = http.server.ThreadingHTTPServer((HOST, port), handler)
        except OSError as error:
            raise UserError(
                f"--port={port} cannot be used ({error.strerror or error}); choose another one, or "
                "leave it out for any free port"
            ) from None

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self._server.server_address[1]}/"

    def stop(self) -> None:
        """Ends `serve`, which another thread does."""
        self._server.shutdown()

    def serve(self) -> None:
        """Until Ctrl-C, or until it is stopped."""
        try:
            self._server.serve_forever()
        except KeyboardInterrupt:
            pass
        finally:
            self._server.server_close()


def show(address: str) -> None:
    """Opens it in a browser where there is a screen: not one in the terminal."""
    has_screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if has_screen or sys.platform in ("darwin", "win32"):
        webbrowser.open(address)
