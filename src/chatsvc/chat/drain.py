"""Draining: whether new requests are refused, and until when running ones may finish.

Knows nothing about signals or processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Drain:
    """Begins once and does not end. :meth:`begin` takes no lock, so a signal handler may call it."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._deadline: float | None = None

    def begin(self, timeout_s: float) -> None:
        """Refuse new requests; running ones have ``timeout_s`` to finish. Only the first call counts."""
        if self._deadline is None:
            self._deadline = self._clock() + timeout_s

    @property
    def has_begun(self) -> bool:
        """Whether new requests are refused."""
        return self._deadline is not None

    @property
    def is_over(self) -> bool:
        """Whether running requests must end now."""
        return self._deadline is not None and self._clock() >= self._deadline
