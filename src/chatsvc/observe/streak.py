"""Whether all chats fail lately, and for the same reason of ours. Knows nothing about chats.

One answer that fails is no outage, and neither are several between others that succeed. Several in a row, with nothing
between them that succeeded, are: whoever watches health then sends people elsewhere. No chat may come after that, so
the verdict ends by itself a while after the last failure, and the next chat decides again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from chatsvc.errors import ChatsvcError, DeadlineExceeded, Draining, Overloaded, RequestError

_LEAST = 3
_KEPT_S = 30.0
# Refused, or ended, by design: that says nothing about the next one.
_NO_FAULT = (RequestError, Overloaded, Draining, DeadlineExceeded)


class Streak:
    """Failures in a row, counted by any number of threads."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._code = ""
        self._num_failures = 0
        self._failed_at = 0.0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count how the block ends. One that the caller left, or was refused for its own fault, is not counted."""
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
        """The code of the error that all of the last chats ended with; None while there is no such streak."""
        if self._num_failures < _LEAST or self._clock() - self._failed_at > _KEPT_S:
            return None
        return self._code

    def _failed(self, code: str) -> None:
        with self._lock:
            self._num_failures = self._num_failures + 1 if code == self._code else 1
            self._code, self._failed_at = code, self._clock()
