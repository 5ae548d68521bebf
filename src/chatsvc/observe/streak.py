"""Detects that all recent chats failed with the same error of ours. Knows nothing about chats.

Three failures in a row, without a success between them, make the service unhealthy, so that a load balancer sends
requests elsewhere. Then perhaps no chat arrives any more, so the verdict expires 30 s after the last failure, and the
next chat decides again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from chatsvc.errors import ChatsvcError, DeadlineExceeded, Draining, Overloaded, RequestError

_LEAST = 3
_KEPT_S = 30.0
# Refused or ended by design: says nothing about the next chat.
_NO_FAULT = (RequestError, Overloaded, Draining, DeadlineExceeded)


class Streak:
    """Counts failures in a row; thread-safe."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._code = ""
        self._num_failures = 0
        self._failed_at = 0.0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count how the block ends. Refusals, and chats whose client left, are not counted."""
        try:
            yield
        except _NO_FAULT:
            raise
        except ChatsvcError as error:
            self._failed(error.code or "server_error")
            raise
        except Exception:
            self._failed("server_error")
            raise
        with self._lock:
            self._num_failures = 0

    def problem(self) -> str | None:
        """The error code of the current streak, or None."""
        if self._num_failures < _LEAST or self._clock() - self._failed_at > _KEPT_S:
            return None
        return self._code

    def _failed(self, code: str) -> None:
        with self._lock:
            self._num_failures = self._num_failures + 1 if code == self._code else 1
            self._code, self._failed_at = code, self._clock()
