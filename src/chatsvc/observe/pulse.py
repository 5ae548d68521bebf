"""Checks the service's dependencies once a second in a thread, so that a health request never waits for one.

A dependency that hangs is noticed without traffic, too. Knows nothing about the dependencies.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

_log = logging.getLogger(__name__)

# A check that takes longer counts as failed while it still runs.
_SLOW_S = 2.5


class Pulse:
    """The checking thread.

    Args:
        checks: by the problem they detect, functions that raise if it is there.
        every_s: pause between two rounds.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        checks: Mapping[str, Callable[[], object]],
        *,
        every_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._checks = checks
        self._every_s = every_s
        self._clock = clock
        self._running: tuple[str, float] | None = None  # the problem being checked, since when
        self._problem: str | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store-pulse", daemon=True)

    def start(self) -> None:
        """Start checking."""
        self._thread.start()

    def problem(self) -> str | None:
        """The first problem found, or None."""
        running = self._running
        if running is not None and self._clock() - running[1] > _SLOW_S:
            return running[0]
        return self._problem

    def beat(self) -> None:
        """Run every check once."""
        problem = None
        for name, check in self._checks.items():
            self._running = name, self._clock()
            try:
                check()
            except Exception as error:  # noqa: BLE001  (any error means a problem, and the thread must go on)
                if problem is None and name != self._problem:
                    _log.error("%s: %s", name, error)
                problem = problem or name
        if problem is None and self._problem is not None:
            _log.info("no longer: %s", self._problem)
        self._problem, self._running = problem, None

    def close(self) -> None:
        """Stop checking and wait for the thread to end."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(self._every_s):
            self.beat()
