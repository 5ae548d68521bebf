"""A bad network between a client and a real server: a proxy that holds answers back, cuts them off or answers itself."""

from __future__ import annotations

import http.client
import json
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_UNAVAILABLE = {"error": {"message": "m", "type": "service_unavailable", "param": None, "code": "store_unavailable"}}
_UNAUTHORIZED = {"error": {"message": "m", "type": "authentication_error", "param": None, "code": "invalid_token"}}
_OWN = {503: _UNAVAILABLE, 401: _UNAUTHORIZED}


class BadNetwork(ThreadingHTTPServer):
    """What a test sets holds for what comes next.

    Attributes:
        answers: path -> status that the proxy answers itself, once (401) or until it is taken out (503).
        may_pass: while it is not set, a stream waits after ``num_events`` events.
        cut: how a stream ends after ``num_events`` events: ``reset`` by TCP, ``end`` as if it were whole.
        asked: (method, path, body) of every request, in order.
    """

    daemon_threads = True

    def __init__(self, upstream_port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream_port = upstream_port
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.answers: dict[str, int] = {}
        self.may_pass = threading.Event()
        self.num_events: int | None = None
        self.cut: str | None = None
        self.is_down = False
        self.asked: list[tuple[str, str, bytes]] = []
        self.heal()

    def heal(self) -> None:
        """Everything passes."""
        self.answers, self.num_events, self.cut, self.is_down = {}, None, None, False
        self.may_pass.set()

    def hold_after(self, num_events: int) -> None:
        """Streams give so many events and then wait for :meth:`heal`."""
        self.num_events = num_events
        self.may_pass.clear()

    def handle_error(self, *_: object) -> None:
        """A connection that a test cuts is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: BadNetwork
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def _pass_on(self) -> None:
        network = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        network.asked.append((self.command, self.path, body))
        self.close_connection = True
        if network.is_down:
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        status = network.answers.get(self.path)
        if status is not None:
            if status == 401:
                del network.answers[self.path]
            self._send(status, [("Content-Type", "application/json")], [json.dumps(_OWN[status]).encode()])
            return
        upstream = http.client.HTTPConnection("127.0.0.1", network.upstream_port, timeout=60)
        upstream.request(self.command, self.path, body or None, dict(self.headers.items()))
        answer = upstream.getresponse()
        headers = [each for each in answer.getheaders() if each[0].lower() not in {"transfer-encoding", "connection"}]
        is_stream = (answer.getheader("Content-Type") or "").startswith("text/event-stream")
        try:
            self._send(answer.status, headers, self._events(answer) if is_stream else [answer.read()])
        finally:
            upstream.close()

    do_GET = do_POST = do_PATCH = do_DELETE = _pass_on  # noqa: N815  (http.server's names)

    def _send(self, status: int, headers: list[tuple[str, str]], pieces: Iterator[bytes] | list[bytes]) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        for piece in pieces:
            self.wfile.write(piece)

    def _events(self, answer: http.client.HTTPResponse) -> Iterator[bytes]:
        network, num_events = self.server, 0
        while block := self._read_event(answer):
            if network.num_events is not None and num_events >= network.num_events:
                if network.cut == "reset":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                if network.cut:
                    return
                while not network.may_pass.wait(0.05):
                    if select.select([self.connection], [], [], 0)[0]:  # the client has gone
                        return
            yield block
            num_events += block.startswith((b"data:", b"event:"))

    @staticmethod
    def _read_event(answer: http.client.HTTPResponse) -> bytes:
        block = b""
        while line := answer.readline():
            block += line
            if line == b"\n":
                break
        return block


@contextmanager
def bad_network(upstream_port: int) -> Iterator[BadNetwork]:
    """The proxy, running."""
    network = BadNetwork(upstream_port)
    thread = threading.Thread(target=network.serve_forever, daemon=True)
    thread.start()
    try:
        yield network
    finally:
        network.heal()
        network.shutdown()
        network.server_close()
        thread.join()
