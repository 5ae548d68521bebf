"""gunicorn's threaded worker, made safe without a reverse proxy: a slow client delays no other.

Behind nginx a request arrives whole. Over TCP a client may send a byte now and then, or nothing, or never close its
side, and gunicorn's own worker waits for it: in a thread for a request, in its main thread for the end of a connection.
Here the main thread reads a request's head without blocking, and hands only complete heads to a thread. A body has a
minimum speed, and few threads at once may wait for one. Closing a connection waits for the client in the poller, not in
a thread. At the limit of connections, the oldest that has sent no whole request is closed. When all threads but the
reserved ones are busy, only health requests get one.

The overridden methods are gunicorn 27's; a test compares the names. Knows nothing about the application.
"""

from __future__ import annotations

import errno
import json
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from selectors import EVENT_READ
from typing import Any

from gunicorn import util
from gunicorn.http import errors as http_errors
from gunicorn.workers.gthread import ThreadWorker

from chatsvc.http.server.receiving import Connection

# As nginx's client_header_timeout.
_HEAD_S = 10.0
_HEAD_BYTES = 65_536  # a longer head goes to gunicorn's parser, which has the limits
# RFC 9112 section 9.6: closing while the client still sends may lose the last answer.
_LINGER_S = 2.0
_LINGER_BYTES = 65_536
_MAX_LINGERING = 128
_ACCEPT_PAUSE_S = 0.2
_SPARE_CONNECTIONS = 8
_TELL_EVERY_S = 10.0
_HEALTH = {b"/livez", b"/healthz", b"/health", b"/readyz"}  # answered from memory; /metrics may wait for the database
_MAX_HEALTH_LINE = 300
_NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_STATUS: tuple[tuple[type[Exception], int, str], ...] = (
    (http_errors.LimitRequestLine, 414, "URI Too Long"),
    (http_errors.LimitRequestHeaders, 431, "Request Header Fields Too Large"),
    (http_errors.UnsupportedTransferCoding, 501, "Not Implemented"),
    (http_errors.ExpectationFailed, 417, "Expectation Failed"),
    (http_errors.ParseException, 400, "Bad Request"),
)


class Worker(ThreadWorker):  # type: ignore[misc]
    """Everything here runs in the main thread except :meth:`handle_error` and :meth:`_keepalive_after`.

    Attributes:
        num_reserved: threads kept for health requests.
    """

    num_reserved = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Bounds the threads that wait for bodies; the others serve complete requests.
        self._waiting = threading.BoundedSemaphore(max(1, self.cfg.threads // 4))
        self._max_of_address = self.worker_connections // 2
        self._of_address: Counter[str] = Counter()
        # In the order of their deadlines, because all have the same time-out.
        self._heads: dict[Connection, None] = {}
        self._lingering: dict[Connection, None] = {}
        self._accept_at = 0.0
        self._num_in_threads = 0
        self._num_refused, self._told_at = 0, 0.0

    def accept(self, listener: socket.socket) -> None:
        """Accept a connection; at the limit, close a waiting one for it."""
        try:
            sock, client = listener.accept()
        except OSError as error:
            if error.errno in _NO_DESCRIPTORS:
                self._free_descriptors()
            elif error.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK):
                raise
            return
        self.nr_conns += 1
        conn = Connection((self.cfg, sock, client, listener.getsockname()), self._waiting, self.let_go)
        if conn.address is not None:
            self._of_address[conn.address] += 1
        if self._fits(conn):
            self.enqueue_req(conn)
        else:
            self._drop(conn)

    def set_accept_enabled(self, enabled: bool) -> None:  # noqa: FBT001  (the base class's)
        """As in the base class, but after a pause if descriptors ran out."""
        if not enabled or time.monotonic() >= self._accept_at:
            super().set_accept_enabled(enabled)

    def enqueue_req(self, conn: Connection) -> None:
        """Wait for a whole head; only then does a thread get the request."""
        if self._is_complete(conn, 0):
            self._to_thread(conn)
            return
        conn.sock.setblocking(False)
        conn.timeout = time.monotonic() + _HEAD_S
        self._heads[conn] = None
        self.poller.register(conn.sock, EVENT_READ, partial(self._on_head, conn))

    def finish_request(self, conn: Connection, fs: Future[Any]) -> None:
        """As in the base class; a pipelined request that has begun to arrive is handled like any other."""
        self._num_in_threads -= 1
        is_kept = not fs.cancelled() and fs.exception() is None and fs.result()
        early = conn.parser.unreader.take_buffered() if is_kept and conn.parser is not None else b""
        if early:
            conn.head += early
            self.enqueue_req(conn)
        else:
            super().finish_request(conn, fs)

    def murder_pending(self) -> None:
        """Close connections past their deadline; when the worker ends, also those that have sent nothing."""
        now = time.monotonic()
        for conn in _expired(self._heads, now) if self.alive else list(self._heads):
            if conn.timeout <= now or not conn.head:
                self._drop(conn)
        for conn in _expired(self._lingering, now):
            self._end_lingering(conn)

    def let_go(self, conn: Connection, lingers: bool) -> None:  # noqa: FBT001
        """Close a connection, or its sending side first."""
        if conn.address is not None:
            self._of_address[conn.address] -= 1
            if self._of_address[conn.address] <= 0:
                del self._of_address[conn.address]
        if lingers and len(self._lingering) < _MAX_LINGERING:
            with suppress(OSError, ValueError):  # the client has closed it already
                conn.sock.shutdown(socket.SHUT_WR)
                conn.sock.setblocking(False)
                self.poller.register(conn.sock, EVENT_READ, partial(self._on_lingering, conn))
                conn.timeout = time.monotonic() + _LINGER_S
                self._lingering[conn] = None
                return
        util.close(conn.sock)

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        """Answer a malformed request, and log it without its content."""
        del req
        status, reason = next((row[1:] for row in _STATUS if isinstance(exc, row[0])), (500, "Internal Server Error"))
        address = addr[0] if isinstance(addr, tuple) else "the proxy"
        if status == 500:
            self.log.error("a request of %s could not be read", address, exc_info=exc)
        else:
            self.log.warning("a request of %s was refused: %s", address, type(exc).__name__)
        with suppress(OSError):
            client.sendall(_answer(status, reason))

    def _keepalive_after(self, conn: Connection, keepalive: bool) -> bool:  # noqa: FBT001
        try:
            return bool(super()._keepalive_after(conn, keepalive))
        except (http_errors.ParseException, OSError):
            return False  # the request has its answer; the connection is closed

    def _on_head(self, conn: Connection, sock: socket.socket) -> None:
        try:
            data = sock.recv(_HEAD_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(conn)
            return
        num_seen = len(conn.head)
        conn.head += data
        if self._is_complete(conn, num_seen):
            self.poller.unregister(sock)
            del self._heads[conn]
            self._to_thread(conn)

    @staticmethod
    def _is_complete(conn: Connection, num_seen: int) -> bool:
        return len(conn.head) >= _HEAD_BYTES or conn.head.find(b"\r\n\r\n", max(0, num_seen - 3)) >= 0

    def _to_thread(self, conn: Connection) -> None:
        if self._num_in_threads >= self.cfg.threads - self.num_reserved and not _is_health(conn.head):
            self._refuse(conn)
            return
        self._num_in_threads += 1
        conn.sock.setblocking(True)
        conn.receive_in_thread()
        conn.data_ready = True
        super().enqueue_req(conn)

    def _refuse(self, conn: Connection) -> None:
        """Every thread but the reserved ones is busy: answer 503 from the main thread, without blocking."""
        self._num_refused += 1
        if time.monotonic() - self._told_at > _TELL_EVERY_S:
            self.log.warning(
                "all threads are busy: %d requests were refused since the last such line", self._num_refused
            )
            self._num_refused, self._told_at = 0, time.monotonic()
        with suppress(OSError):
            conn.sock.send(_answer(503, "Service Unavailable"), socket.MSG_DONTWAIT)
        self.nr_conns -= 1
        conn.close(graceful=True)

    def _fits(self, newest: Connection) -> bool:
        """Whether the newest connection may stay; an older one without a whole request may be closed for it."""
        of_address = newest.address is not None and self._of_address[newest.address] > self._max_of_address
        if not of_address and self.nr_conns <= self.worker_connections - _SPARE_CONNECTIONS:
            return True
        for conn in (*self._heads, *self.keepalived_conns):
            if not of_address or conn.address == newest.address:
                self._drop(conn)
                return True
        return not of_address

    def _drop(self, conn: Connection) -> None:
        with suppress(KeyError, ValueError):
            self.poller.unregister(conn.sock)
        self._heads.pop(conn, None)
        with suppress(ValueError):
            self.keepalived_conns.remove(conn)
        self.nr_conns -= 1
        conn.close()

    def _on_lingering(self, conn: Connection, sock: socket.socket) -> None:
        try:
            data = sock.recv(_LINGER_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        conn.num_drained += len(data)
        if not data or conn.num_drained >= _LINGER_BYTES:
            self._end_lingering(conn)

    def _end_lingering(self, conn: Connection) -> None:
        self.poller.unregister(conn.sock)
        del self._lingering[conn]
        util.close(conn.sock)

    def _free_descriptors(self) -> None:
        """File descriptors ran out: close waiting connections, or pause accepting if none waits."""
        self.log.warning("no file descriptor is left for another connection; raise the limit (ulimit -n)")
        for conn in [*self._lingering]:
            self._end_lingering(conn)
        waiting = [*self._heads, *self.keepalived_conns]
        for conn in waiting[: max(_SPARE_CONNECTIONS, len(waiting) // 2)]:
            self._drop(conn)
        if not waiting:
            self._accept_at = time.monotonic() + _ACCEPT_PAUSE_S
            self.set_accept_enabled(False)


def _expired(connections: Iterable[Connection], now: float) -> list[Connection]:
    expired = []
    for conn in connections:
        if conn.timeout > now:
            break
        expired.append(conn)
    return expired


def _is_health(head: bytearray) -> bool:
    """Whether a request may use one of the reserved threads."""
    method, _, rest = bytes(head[:_MAX_HEALTH_LINE]).partition(b" ")
    if method not in {b"GET", b"HEAD"} or rest.partition(b" ")[0].partition(b"?")[0] not in _HEALTH:
        return False
    fields = bytes(head).lower()
    return b"\ncontent-length" not in fields and b"\ntransfer-encoding" not in fields  # a body may be slow


def _answer(status: int, reason: str) -> bytes:
    """An error in the contract's shape, as bytes: it never reaches the application."""
    error = {"message": "The request is not valid HTTP for this service.", "param": None, "code": None}
    error["type"] = "server_error" if status == 500 else "invalid_request_error"
    more = ""
    if status == 503:
        message = "Every thread is busy; try again after the time in Retry-After."
        error |= {"message": message, "type": "overloaded_error", "code": "queue_full"}
        more = "Retry-After: 1\r\n"
    body = json.dumps({"error": error}).encode()
    head = (
        f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"X-Request-Id: {secrets.token_hex(16)}\r\n{more}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
