"""A circuit breaker: while a server does not answer, only one caller at a time waits for it. Knows no server.

A time-out trips the breaker. Then all callers are refused at once, except one every ``pause_s`` seconds, which tries
again. The first answer closes the breaker.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from chatsvc.errors import StoreUnavailable

_PAUSE_S = 0.5
# A failure after more than this is a time-out; a server that refuses a connection does so at once.
_SILENT_AFTER_S = 1.0


class Breaker:
    """The breaker of one server.

    Args:
        pause_s: time between two attempts; at least as long as an attempt may take, or several callers wait at once.
        refusal: the error of a refused caller.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        pause_s: float = _PAUSE_S,
        *,
        refusal: type[StoreUnavailable] = StoreUnavailable,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pause_s = pause_s
        self._refusal = refusal
        self._clock = clock
        self._lock = threading.Lock()
        self._try_at: float | None = None  # the next attempt; None: closed

    @contextmanager
    def watch(self, *failures: type[Exception]) -> Iterator[None]:
        """Around one exchange with the server. A time-out trips the breaker; any answer closes it.

        Args:
            failures: what the client raises when the server refuses, aborts or does not answer.

        Raises:
            StoreUnavailable: the breaker is open and another caller is trying; a subclass if ``refusal`` says so.
        """
        self.check()
        started_at = self._clock()
        try:
            yield
        except failures:
            if self._clock() - started_at > _SILENT_AFTER_S:
                self.trip()
            raise
        except Exception:  # the server answered; the error is the caller's
            self.close()
            raise
        self.close()

    def check(self) -> None:
        """Do nothing, or refuse.

        Raises:
            StoreUnavailable: as in :meth:`watch`.
        """
        is_closed = self._try_at is None  # the usual case, without the lock
        if is_closed:
            return
        with self._lock:
            now = self._clock()
            if self._try_at is None:  # closed meanwhile
                return
            if now < self._try_at:
                raise self._refusal
            self._try_at = now + self._pause_s

    def trip(self) -> None:
        """Open the breaker: the server did not answer."""
        with self._lock:
            self._try_at = self._clock() + self._pause_s

    def close(self) -> None:
        """Close the breaker: the server answered."""
        if self._try_at is not None:
            with self._lock:
                self._try_at = None
