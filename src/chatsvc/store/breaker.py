"""Remembers that a server does not answer, so that not every thread finds it out by waiting. Knows no server.

A time-out trips the breaker. From then on everybody is refused at once, except one caller in every ``pause_s``, who
tries again; the first answer closes it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from chatsvc.errors import StoreUnavailable

_PAUSE_S = 0.5
# What fails later than this was not refused: nobody answered.
_SILENT_AFTER_S = 1.0


class Breaker:
    """One for each server.

    Args:
        pause_s: how often one caller tries again; at least as long as a try may take, or several wait at once.
        refusal: what a refused caller gets.
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
        self._try_at: float | None = None  # None: it answers

    @contextmanager
    def watch(self, *failures: type[Exception]) -> Iterator[None]:
        """Around one conversation with the server. A failure that took long trips the breaker; any answer closes it.

        Args:
            failures: what the client raises when the server refuses the connection, breaks it off or is silent.

        Raises:
            StoreUnavailable: the breaker is open, and somebody else is trying again.
        """
        self.check()
        started_at = self._clock()
        try:
            yield
        except failures:
            if self._clock() - started_at > _SILENT_AFTER_S:
                self.trip()
            raise
        except Exception:  # it answered: what came after is not its fault
            self.close()
            raise
        self.close()

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
                raise self._refusal
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
