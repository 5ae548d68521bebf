"""A connection of the web process, and how a thread reads a request's body from it. Knows no application."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from threading import BoundedSemaphore
from typing import Any

from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import TConn

# The time a body may take: this many seconds, plus its bytes at the minimum speed.
_BODY_S = 10.0
_LEAST_BYTES_PER_S = 4096

LetGo = Callable[["Connection", bool], None]


class Connection(TConn):  # type: ignore[misc]
    """A connection that the worker's main thread closes.

    Args:
        arguments: the base class's: configuration, socket, the client's address, the server's.
        waiting: bounds how many threads wait for clients' bytes at once.
        let_go: closes it; the second argument says whether to linger.
    """

    def __init__(self, arguments: tuple[Any, ...], waiting: BoundedSemaphore, let_go: LetGo) -> None:
        super().__init__(*arguments)
        client = arguments[2]
        self.address: str | None = client[0] if isinstance(client, tuple) else None  # None: a unix socket's
        self.head = bytearray()
        self.num_drained = 0
        self._waiting = waiting
        self._let_go = let_go

    def receive_in_thread(self) -> None:
        """Hand the head to the parser, which reads the rest itself."""
        self.init()
        if not isinstance(self.parser.unreader, _Unreader):
            self.parser.unreader = _Unreader(self.sock, self._waiting)
        self.parser.unreader.begin()
        self.parser.unreader.unread(bytes(self.head))
        self.head.clear()

    def close(self, graceful: bool = False) -> None:  # noqa: FBT001, FBT002  (the base class's)
        """As in the base class, but without waiting for the client."""
        self._let_go(self, graceful)


class _Unreader(SocketUnreader):  # type: ignore[misc]
    """Reads the rest of a request in a thread; a client that is too slow is cut off."""

    def __init__(self, sock: socket.socket, waiting: BoundedSemaphore) -> None:
        super().__init__(sock)
        self.sock: socket.socket = sock
        self._waiting = waiting
        self._deadline = 0.0

    def begin(self) -> None:
        """Start the clock of a request."""
        self._deadline = time.monotonic() + _BODY_S

    def chunk(self, size_hint: int | None = None) -> bytes:
        """The next bytes.

        Raises:
            TimeoutError: the client is too slow, or too many threads already wait for slow clients.
        """
        size = min(max(size_hint or 0, self.mxchunk), self.max_body_chunk)
        try:
            data = self.sock.recv(size, socket.MSG_DONTWAIT)
        except BlockingIOError:
            data = self._wait_for(size)
        self._deadline += len(data) / _LEAST_BYTES_PER_S
        return data

    def _wait_for(self, size: int) -> bytes:
        before, left_s = self.sock.gettimeout(), self._deadline - time.monotonic()
        if left_s <= 0 or not self._waiting.acquire(blocking=False):
            raise TimeoutError
        try:
            self.sock.settimeout(left_s if before is None else min(before, left_s))
            return self.sock.recv(size)
        finally:
            self._waiting.release()
            self.sock.settimeout(before)
