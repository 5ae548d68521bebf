"""The wall clock as the log sees it: the time of a record, and whether the clock was set.

A wall clock may be years off and then be corrected. The time since boot (``mono_us``) is not affected, so the
difference of the two changes only when somebody sets the wall clock. A step of a minute or more is a record of its own
(``audit.clock``); until that is written, records use the old setting. Knows no records.

*Log time* is wall time with every such step taken out (:class:`chatsvc.audit.format.rules.Position`): it never goes
back, and sealing epochs, segments and checkpoints go by it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import CLOCK_BOOTTIME, clock_gettime_ns, time_ns

from chatsvc.audit.format.rules import LEAST_STEP_US


@dataclass(frozen=True, slots=True)
class Clock:
    """The clocks, passed in: Unix microseconds, microseconds since boot, and the id of that boot."""

    wall_us: Callable[[], int]
    mono_us: Callable[[], int]
    boot_id: str


def system_clock() -> Clock:
    """The machine's clocks. CLOCK_BOOTTIME continues during suspend, so waking up is not a step of the wall clock."""
    path = Path("/proc/sys/kernel/random/boot_id")
    boot_id = path.read_text(encoding="ascii").strip() if path.exists() else "unknown"
    return Clock(lambda: time_ns() // 1000, lambda: clock_gettime_ns(CLOCK_BOOTTIME) // 1000, boot_id)


@dataclass(frozen=True, slots=True)
class Moment:
    """Both clocks, read together; microseconds."""

    wall_us: int
    mono_us: int


class Timekeeper:
    """Knows the wall clock's setting: wall time minus time since boot, as recorded."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._setting_us = 0
        self.begin()

    def now(self) -> Moment:
        """Both clocks."""
        return Moment(self.clock.wall_us(), self.clock.mono_us())

    def begin(self) -> None:
        """Accept the current setting: a new log has nothing to compare it with."""
        now = self.now()
        self._setting_us = now.wall_us - now.mono_us

    def resume(self, last: Moment, boot_id: str) -> None:
        """Use the setting of the last record.

        After a reboot it is unknown how much time has passed, only that it did not go back.
        """
        now = self.now()
        if boot_id == self.clock.boot_id and now.mono_us >= last.mono_us:
            self._setting_us = last.wall_us - last.mono_us
        else:
            self._setting_us = max(now.wall_us, last.wall_us) - now.mono_us

    def wall_of(self, moment: Moment) -> int:
        """The wall time of a moment, by the recorded setting."""
        by_setting = moment.mono_us + self._setting_us
        return moment.wall_us if abs(moment.wall_us - by_setting) < LEAST_STEP_US else by_setting

    def step(self, moment: Moment) -> int:
        """By how much the wall clock was set, microseconds, + forward; 0 if that is less than a minute."""
        step = moment.wall_us - moment.mono_us - self._setting_us
        return step if abs(step) >= LEAST_STEP_US else 0

    def take_step(self, moment: Moment) -> None:
        """The step is recorded: use the new setting."""
        self._setting_us = moment.wall_us - moment.mono_us
