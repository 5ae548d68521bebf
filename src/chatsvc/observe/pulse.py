"""Asks what the service stands on, once a second, whether it answers, so that health can say so at once.

Nobody who asks for health waits for a database, and one that hangs is told from one that answers also while there is
no traffic. Knows nothing about what is asked.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

_log = logging.getLogger(__name__)

# An answer that takes longer is none.
_SLOW_S = 2.5


class Pulse:
    """One thread.

    Args:
        checks: by what is wrong then, what raises where there is no answer.
        every_s: the pause between two rounds.
        clock: seconds.
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
        self._asking: tuple[str, float] | None = None
        self._problem: str | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store-pulse", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def problem(self) -> str | None:
        """What is wrong with the first that does not answer, None where all do."""
        asking = self._asking
        if asking is not None and self._clock() - asking[1] > _SLOW_S:
            return asking[0]
        return self._problem

    def beat(self) -> None:
        """Ask everyone once."""
        problem = None
        for name, check in self._checks.items():
            self._asking = name, self._clock()
            try:
                check()
            except Exception as error:  # noqa: BLE001  (whatever it was, it was no answer, and the thread must go on)
                if problem is None and name != self._problem:
                    _log.error("%s: %s", name, error)
                problem = problem or name
        if problem is None and self._problem is not None:
            _log.info("no longer: %s", self._problem)
        self._problem, self._asking = problem, None

    def close(self) -> None:
        """Stop asking."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(self._every_s):
            self.beat()
