"""Logs for tests: written for real on a temporary path, by a clock that a test turns."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chatsvc.audit import keys
from chatsvc.audit.facts import Facts, Result
from chatsvc.audit.format import layout
from chatsvc.audit.log import AuditLog
from chatsvc.audit.options import AuditOptions
from chatsvc.audit.verify.log import Trust
from chatsvc.audit.write.timekeeping import Clock

NOON_US = 1_795_348_800_000_000  # 2026-11-22T12:00:00Z
DAY_US = 86_400_000_000


def home_trust(of: AuditOptions | Path, **more: Any) -> Trust:
    """What a verifier believes that has the home of this log, or the home in which this file or folder lies."""
    if isinstance(of, Path):
        places = [parent / "keys" for parent in of.parents]
        return Trust(home=keys.trusted_keys(next(each for each in places if each.is_dir())), **more)
    return Trust(home=keys.trusted_keys(of.keys), **more)


class Time:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.wall_us = NOON_US
        self.mono_us = 5_000_000
        self._ticks = itertools.count(1)  # no two looks at a clock see the same time

    def pass_us(self, microseconds: int) -> None:
        self.wall_us += microseconds
        self.mono_us += microseconds

    def clock(self) -> Clock:
        return Clock(self._wall, self._mono, "boot-1")

    def _wall(self) -> int:
        return self.wall_us + next(self._ticks)

    def _mono(self) -> int:
        return self.mono_us + next(self._ticks)


def write_some(options: AuditOptions, time: Time, count: int = 3, action: str = "chat.generate") -> None:
    """Open, generate ``count`` times, close."""
    log = AuditLog.open(options, clock=time.clock())
    for number in range(count):
        record = log.begin(Facts(f"r{number}", action, "alice", address="10.0.0.1", jti="token-1"))
        time.pass_us(1000)
        record.end(Result("allowed", 200, num_prompt_tokens=7, num_completion_tokens=number))
    log.close()


def write_segments(options: AuditOptions, time: Time, segments: int, days_between: int = 1) -> AuditOptions:
    """A log of so many segments, each so many days after the one before."""
    daily = replace(options, segment_age_s=3600)
    for _ in range(segments):
        write_some(daily, time, 2)
        time.pass_us(days_between * DAY_US)
    return daily


def last_segment(options: AuditOptions) -> Path:
    return layout.segments(options.directory)[-1]


def lines_of(options: AuditOptions) -> list[bytes]:
    return b"".join(path.read_bytes() for path in layout.segments(options.directory)).splitlines()


def vectors() -> Path:
    """Where the public test vectors are; skips where they are not."""
    path = Path(os.environ.get("CHATSVC_VECTORS") or Path(__file__).parents[3] / "shared" / "vectors")
    if not path.is_dir():
        pytest.skip("the public test vectors are not beside this checkout (set CHATSVC_VECTORS)")
    return path
