"""Refusals of unknown callers: the first of a kind is a record, the rest of a window is a number.

Pure; time is passed in; the caller holds a lock.
"""

from __future__ import annotations

from dataclasses import replace

from chatsvc.audit.facts import Facts

_Kind = tuple[Facts, str]


class Denials:
    """What was refused in the present window."""

    def __init__(self, window_s: float, max_kinds: int) -> None:
        self._window_s = window_s
        self._max_kinds = max_kinds
        self._since: float | None = None
        self._counts: dict[_Kind, int] = {}

    def is_news(self, facts: Facts, reason: str, now: float, *, can_write: bool) -> bool:
        """Whether this one gets a record of its own; else it is counted."""
        if self._since is None:
            self._since = now
        kind = (replace(facts, request_id="", jti=None, attempted_name=None), reason)
        if kind not in self._counts and len(self._counts) >= self._max_kinds:
            kind = (Facts("", facts.action), reason)  # too many kinds: only what was asked for and why
        elif kind not in self._counts and can_write:
            self._counts[kind] = 0
            return True
        self._counts[kind] = self._counts.get(kind, 0) + 1
        return False

    def take_sums(self, now: float) -> list[tuple[Facts, str, int]]:
        """What was counted, once the window is over; a new window begins with the next refusal."""
        if self._since is None or now - self._since < self._window_s:
            return []
        sums = [(facts, reason, count) for (facts, reason), count in self._counts.items() if count]
        self._since, self._counts = None, {}
        return sums
