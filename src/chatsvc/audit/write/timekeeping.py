"""The wall clock as the log sees it: what a record's time is, and when the clock was set.

A machine's wall clock may be wrong by years, and be put right. The clock since the machine's start (``mono_us``) goes
on meanwhile, so the difference of both changes only when somebody sets the wall clock. Beyond a minute that is a record
of its own (``audit.clock``), and until it is written records keep the time by the old setting. Knows no records.

*Log time* is wall time with every such step taken out again (:class:`chatsvc.audit.format.rules.Position`): it never
goes back, and sealing epochs, segments and checkpoints go by it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import CLOCK_BOOTTIME, clock_gettime_ns, time_ns

from chatsvc.audit.format.rules import LEAST_STEP_US


@dataclass(frozen=True, slots=True)
class Clock:
    """Time, passed in. ``boot_id`` says which start of the machine ``mono_us`` counts from."""

    wall_us: Callable[[], int]
    mono_us: Callable[[], int]
    boot_id: str


def system_clock() -> Clock:
    """The machine's own. A machine that slept has set nothing: CLOCK_BOOTTIME goes on, CLOCK_MONOTONIC does not."""
    path = Path("/proc/sys/kernel/random/boot_id")
    boot_id = path.read_text(encoding="ascii").strip() if path.exists() else "unknown"
    return Clock(lambda: time_ns() // 1000, lambda: clock_gettime_ns(CLOCK_BOOTTIME) // 1000, boot_id)


@dataclass(frozen=True, slots=True)
class Moment:
    """One look at both clocks."""

    wall_us: int
    mono_us: int


class Timekeeper:
    """Knows how the wall clock is set: ``setting_us`` is wall time minus the time since the machine's start."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._setting_us = 0
        self.begin()

    def now(self) -> Moment:
        """Both clocks."""
        return Moment(self.clock.wall_us(), self.clock.mono_us())

    def begin(self) -> None:
        """The wall clock is right as it is: there is nothing to compare it with."""
        now = self.now()
        self._setting_us = now.wall_us - now.mono_us

    def resume(self, last: Moment, boot_id: str) -> None:
        """Compare with the last record from now on.

        Since another start of the machine nobody knows how much time has passed, only that it did not go back.
        """
        now = self.now()
        if boot_id == self.clock.boot_id and now.mono_us >= last.mono_us:
            self._setting_us = last.wall_us - last.mono_us
        else:
            self._setting_us = max(now.wall_us, last.wall_us) - now.mono_us

    def wall_of(self, moment: Moment) -> int:
        """The wall time of a moment, by the setting that is on record."""
        by_setting = moment.mono_us + self._setting_us
        return moment.wall_us if abs(moment.wall_us - by_setting) < LEAST_STEP_US else by_setting

    def step(self, moment: Moment) -> int:
        """By how much the wall clock was set, microseconds, + forward; 0 if that is less than a minute."""
        step = moment.wall_us - moment.mono_us - self._setting_us
        return step if abs(step) >= LEAST_STEP_US else 0

    def take_step(self, moment: Moment) -> None:
        """The step is on record."""
        self._setting_us = moment.wall_us - moment.mono_us
