"""Refusals of unknown callers: the first few of a kind get a record each, the rest of a window is summed up.

So a flood takes little disk space, and every kind of refusal is still recorded. Windows get longer during a flood.
Pure: time is passed in, in seconds; the caller holds a lock.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network

from chatsvc.audit.facts import Facts

_MAX_WINDOW_S = 1800
_FLOOD = 100  # this many counted refusals of one kind in one window raise an alarm
_ALARM_S = 600  # how long an alarm stays after its window

_Kind = tuple[Facts, str]


class Denials:
    """The refusals of the current window.

    Args:
        window_s: length of the first window; after one in which something was only counted, the next is twice as
            long, up to half an hour.
        max_kinds: how many kinds are distinguished in a window; further ones are counted by action and reason only.
        num_single: how many of a kind get a record of their own in a window.
    """

    def __init__(self, window_s: float, max_kinds: int, num_single: int = 1) -> None:
        self._first_window_s = self._window_s = window_s
        self._max_kinds = max_kinds
        self._num_single = num_single
        self._since: float | None = None
        self._ended_at = float("-inf")
        self._singles: dict[_Kind, int] = {}
        self._counts: dict[_Kind, int] = {}
        self._floods: list[str] = []

    def is_spent(self, facts: Facts, reason: str) -> bool:
        """Whether another refusal of this kind would only be counted."""
        kind = _kind_of(facts, reason)
        return self._singles.get(kind, 0) >= self._num_single if kind in self._singles else self._is_crowded()

    def is_news(self, facts: Facts, reason: str, now: float, *, can_write: bool) -> bool:
        """Whether this refusal gets a record of its own; else it is counted."""
        self._begin(now)
        kind = _kind_of(facts, reason)
        if can_write and not self.is_spent(facts, reason):
            self._singles[kind] = self._singles.get(kind, 0) + 1
            return True
        if kind not in self._singles and self._is_crowded():
            kind = (Facts("", facts.action), reason)
        self._counts[kind] = self._counts.get(kind, 0) + 1
        self._singles.setdefault(kind, 0)
        return False

    def recorded(self, facts: Facts, reason: str, now: float) -> None:
        """Count a refusal that already has a record among the first few of its kind."""
        self._begin(now)
        if not self.is_spent(facts, reason):
            kind = _kind_of(facts, reason)
            self._singles[kind] = self._singles.get(kind, 0) + 1

    def take_sums(self, now: float) -> list[tuple[Facts, str, int]]:
        """The counts, once the window is over; the next refusal begins a new window."""
        if self._since is None or now - self._since < self._window_s:
            return []
        sums = [(facts, reason, count) for (facts, reason), count in self._counts.items() if count]
        self._window_s = min(2 * self._window_s, _MAX_WINDOW_S) if sums else self._first_window_s
        self._floods = self._flooding()
        self._since, self._singles, self._counts, self._ended_at = None, {}, {}, now
        return sums

    def alarms(self, now: float) -> list[str]:
        """A sentence for every kind with very many refusals, in this window or the one before."""
        lately = self._floods if now - self._ended_at < _ALARM_S else []
        return list(dict.fromkeys([*self._flooding(), *lately]))

    def _begin(self, now: float) -> None:
        if self._since is None:
            if now - self._ended_at > self._window_s:  # no flood for a while
                self._window_s = self._first_window_s
            self._since = now

    def _is_crowded(self) -> bool:
        return len(self._singles) >= self._max_kinds

    def _flooding(self) -> list[str]:
        many = [facts for (facts, _), count in self._counts.items() if count >= _FLOOD]
        return [f"{each.action} is refused very often, from {each.address or 'many addresses'}" for each in many]


def _kind_of(facts: Facts, reason: str) -> _Kind:
    network = _network_of(facts.address)
    return replace(facts, request_id="", jti=None, attempted_name=None, address=network), reason


def _network_of(address: str | None) -> str | None:
    """One customer is given a whole /64 of IPv6 addresses, so these count as one."""
    if address is None or ":" not in address:
        return address
    return str(IPv6Network((IPv6Address(address), 64), strict=False))
