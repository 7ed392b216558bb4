"""Web servers of many habits, on a port of this machine."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Serves `files` by path, and notes every request.

    Args:
        ranges: whether it knows them. breaks: answers to break off after `piece` bytes.
        errors: HTTP errors to give first, one a request. kind: the Content-Type of everything.
        endless: whether an answer goes on for ever. drips: whether its headers do, a byte at a time.
        leads: where each answer leads to, and its page goes on for ever.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes], **habits: object) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests = files, []
        self.ranges, self.breaks, self.piece, self.errors = True, 0, 1000, []
        self.kind, self.headers, self.endless = "application/octet-stream", {}, False
        self.drips, self.leads = False, ""
        vars(self).update(habits)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """HTTP 1.1 with ranges."""

    server: Server
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.requests.append((self.command, self.path, asked))
        self.close_connection = True
        if server.drips:
            with suppress(OSError):
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
                while True:
                    self.wfile.write(b"x")
                    time.sleep(0.02)
        if server.leads:
            self.send_response(302)
            self.send_header("Location", server.leads)
            self.pour(bytes(1000))
            return
        data = server.files.get(self.path)
        if server.errors or data is None:
            self.send_response(server.errors.pop(0) if server.errors else 404)
            self.end(0, {"X-Error-Code": "EntryNotFound"})
            return
        start = 0
        if asked and server.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-\d*", asked)[1])
            if start >= len(data):
                self.send_response(416)
                self.end(0, {"Content-Range": f"bytes */{len(data)}"})
                return
            self.send_response(206)
            ending = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        else:
            self.send_response(200)
            ending = {}
        if server.endless:
            self.pour(data)
            return
        etag = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        self.end(len(data) - start, {"Content-Type": server.kind, **etag, **ending})
        if not body:
            return
        if server.breaks:
            server.breaks -= 1
            self.wfile.write(data[start : start + server.piece])
        else:
            self.wfile.write(data[start:])

    def pour(self, data: bytes) -> None:
        """The same again and again, a little at a time, without a length, until nobody listens."""
        self.send_header("Content-Type", self.server.kind)
        self.end_headers()
        with suppress(OSError):
            while True:
                self.wfile.write(data)
                time.sleep(0.001)

    def end(self, length: int, headers: dict[str, str]) -> None:
        for key, value in {
            "Content-Length": str(length),
            "Connection": "close",
            **headers,
            **self.server.headers,
        }.items():
            self.send_header(key, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(files: dict[str, bytes], **habits: object) -> Iterator[Server]:
    """A server for the length of a `with` block."""
    server = Server(files, **habits)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
