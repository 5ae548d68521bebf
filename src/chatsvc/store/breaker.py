"""Remembers that a server does not answer, so that not every thread finds it out by waiting. Knows no server.

Who waited in vain trips it. From then on everybody is refused at once, except one caller in every ``pause_s``, who
tries again; the first that is answered closes it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from chatsvc.errors import StoreUnavailable

_PAUSE_S = 0.5


class Breaker:
    """One for each server."""

    def __init__(self, pause_s: float = _PAUSE_S, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._pause_s = pause_s
        self._clock = clock
        self._lock = threading.Lock()
        self._try_at: float | None = None  # None: it answers

    def check(self) -> None:
        """Pass, or be refused.

        Raises:
            StoreUnavailable: the server did not answer, and somebody else is trying again.
        """
        answers = self._try_at is None  # what every request asks: without the lock
        if answers:
            return
        with self._lock:
            now = self._clock()
            if self._try_at is None:  # it answered meanwhile
                return
            if now < self._try_at:
                raise StoreUnavailable
            self._try_at = now + self._pause_s

    def trip(self) -> None:
        """The server did not answer."""
        with self._lock:
            self._try_at = self._clock() + self._pause_s

    def close(self) -> None:
        """It does."""
        if self._try_at is not None:
            with self._lock:
                self._try_at = None
