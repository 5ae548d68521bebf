"""Going down: from when on nothing new is taken, and until when what runs may still run.

Knows nothing about signals or processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Drain:
    """Set once, read by everybody. Safe to begin from a signal handler: it takes no lock."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._deadline: float | None = None

    def begin(self, timeout_s: float) -> None:
        """Take nothing new, and end in ``timeout_s`` what still runs then. The first call counts."""
        if self._deadline is None:
            self._deadline = self._clock() + timeout_s

    @property
    def has_begun(self) -> bool:
        """Nothing new is taken."""
        return self._deadline is not None

    @property
    def is_over(self) -> bool:
        """What still runs must end now."""
        return self._deadline is not None and self._clock() >= self._deadline
