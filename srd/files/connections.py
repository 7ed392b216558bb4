"""Web addresses opened with one limit to the time of everything: connections, headers, redirects, data."""

from __future__ import annotations

import http.client
import io
import socket
import time
import urllib.error
import urllib.request
from email.message import Message
from functools import partial
from typing import IO, Any

TIMEOUT = 30.0  # seconds without a byte


def open_address(request: urllib.request.Request, until: float) -> http.client.HTTPResponse:
    """The answer to a request, which nobody can be made to wait for beyond the time `until`.

    Args:
        until: of `time.monotonic`; afterwards, reading raises a TimeoutError, headers included.

    Raises:
        As `urllib.request.urlopen`.
    """
    opener = urllib.request.build_opener(_Handler(until), _Redirects)
    return opener.open(request, timeout=TIMEOUT)


class _Raw(io.RawIOBase):
    """A connection's bytes until the time is over: a server can send one byte every 29 seconds."""

    def __init__(self, connection: socket.socket, raw: io.RawIOBase, until: float) -> None:
        self.connection, self.raw, self.until = connection, raw, until

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError("it takes too long")
        self.connection.settimeout(min(TIMEOUT, left))
        return self.raw.readinto(buffer)

    def close(self) -> None:
        self.raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(
        self, connection: socket.socket, *arguments: Any, until: float, **how: Any
    ) -> None:
        super().__init__(connection, *arguments, **how)
        self.fp = io.BufferedReader(_Raw(connection, self.fp.detach(), until))


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens both kinds of addresses."""

    def __init__(self, until: float) -> None:
        super().__init__()
        self.until = until

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(self._connect, http.client.HTTPConnection), request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(self._connect, http.client.HTTPSConnection), request)

    def _connect(self, kind: type[http.client.HTTPConnection], host: str, **how: Any) -> Any:
        connection = kind(host, **how)
        connection.response_class = partial(_Response, until=self.until)  # type: ignore[assignment]
        return connection


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to web addresses only, and reads nothing of the page that leads there."""

    def http_error_302(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message
    ) -> Any:
        fp.close()
        return super().http_error_302(req, io.BytesIO(), code, msg, headers)  # type: ignore[arg-type]

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(self, *arguments: Any) -> urllib.request.Request | None:
        request = super().redirect_request(*arguments)
        if request is not None and request.type not in ("http", "https"):
            raise urllib.error.URLError(f"leads to a {request.type} address")
        return request
