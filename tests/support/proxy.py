"""A proxy between client and server that injects faults before, during or after a request."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Request:
    """A request of a client, and the status of the server's response (0: the server did not get the request)."""

    number: int  # from 1
    method: str
    path: str
    headers: dict[str, str]
    status: int = 0


@dataclass(frozen=True)
class Fault:
    """The fault of one request. By default there is none, and the proxy forwards the request."""

    status: int = 0  # of a response by the proxy; the server does not get the request
    close_connection: bool = False  # closes the connection; the server does not get the request
    drop_response: bool = False  # forwards the request, and closes the connection instead of sending a response
    truncate_body: bool = False  # sends half of the response's body, then closes the connection
    delay: float = 0  # seconds before the request is forwarded
    kill: int = 0  # kills this process (SIGKILL) at `moment`
    moment: str = "before"  # or "halfway", "after" the request


class Proxy:
    """Listens on a free port; `choose_fault` returns the fault of each request."""

    def __init__(self, target: str, address: str = "127.0.0.1") -> None:
        self.target = urlsplit(target).netloc
        self.choose_fault: Callable[[Request], Fault | None] = lambda _: None
        self.requests: list[Request] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer((address, 0), self._make_handler())
        self._server.daemon_threads = True
        self.endpoint = f"http://{address}:{self._server.server_port}"

    @contextmanager
    def serve(self) -> Iterator[Proxy]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    def reset(self, choose_fault: Callable[[Request], Fault | None] = lambda _: None) -> None:
        """Clear the recorded requests, and set the function that chooses faults."""
        with self._lock:
            self.requests, self.choose_fault = [], choose_fault

    def _record_request(self, handler: BaseHTTPRequestHandler) -> tuple[Request, Fault]:
        with self._lock:
            number = len(self.requests) + 1
            request = Request(number, handler.command, handler.path, {k.lower(): v for k, v in handler.headers.items()})
            self.requests.append(request)
            return request, self.choose_fault(request) or Fault()

    def _record_status(self, request: Request, status: int) -> None:
        with self._lock:
            if len(self.requests) >= request.number and self.requests[request.number - 1] is request:
                self.requests[request.number - 1] = Request(**{**vars(request), "status": status})

    def _make_handler(proxy) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - `self` is the handler's
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # otherwise each response waits until the client acknowledges its headers
            wbufsize = 1 << 16

            def log_message(self, *_: Any) -> None:
                pass

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except OSError:  # the client has closed the connection, or was killed
                    self.close_connection = True

            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                request, fault = proxy._record_request(self)
                time.sleep(fault.delay)
                if fault.status:
                    code = {409: "ConditionalRequestConflict", 429: "TooManyRequests"}.get(fault.status, "SlowDown")
                    text = f"<Error><Code>{code}</Code><Message>fault of the test proxy</Message></Error>"
                    return self.send_response_with_body(
                        fault.status, {"Content-Type": "application/xml"}, text.encode()
                    )
                if fault.close_connection:
                    return self.hang_up()
                if fault.kill and fault.moment == "before":
                    return self.kill(fault.kill)
                connection = http.client.HTTPConnection(proxy.target, timeout=60)
                try:
                    connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                    for name, value in self.headers.items():
                        connection.putheader(name, value)
                    if fault.kill and fault.moment == "halfway":
                        connection.endheaders(body[: len(body) // 2])
                        return self.kill(fault.kill)
                    connection.endheaders(body)
                    response = connection.getresponse()
                    data = response.read()
                finally:
                    connection.close()
                proxy._record_status(request, response.status)
                if fault.kill:
                    return self.kill(fault.kill)
                if fault.drop_response:
                    return self.hang_up()
                return self.send_response_with_body(
                    response.status, dict(response.getheaders()), data, truncate=fault.truncate_body
                )

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = forward  # noqa: N815 - names of http.server

            def send_response_with_body(
                self, status: int, headers: dict[str, str], data: bytes, truncate: bool = False
            ) -> None:
                self.send_response_only(status)
                length = headers.pop("Content-Length", len(data)) if self.command == "HEAD" else len(data)
                for name, value in headers.items():
                    if name.lower() not in {"transfer-encoding", "connection", "content-length"}:
                        self.send_header(name, value)
                if status != 204:
                    self.send_header("Content-Length", str(length))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data[: len(data) // 2] if truncate else data)
                if truncate:
                    self.hang_up()

            def hang_up(self) -> None:
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

            def kill(self, process: int) -> None:
                os.kill(process, signal.SIGKILL)
                self.close_connection = True

        return Handler
