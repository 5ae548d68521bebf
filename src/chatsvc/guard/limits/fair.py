"""Whose turn is next: deficit round robin over tokens, between principals (after Shreedhar and Varghese, 1995).

Each principal with waiting requests has a line; the lines form a ring. A round visits every line once and credits it
with a quantum of tokens. If the line's balance is then positive, its *first* request is served, and only that one, and
the request's cost is subtracted. The balance may so become negative: a line in debt is skipped until its credits have
paid. A request costs at least one quantum, so splitting work into many small requests gains nothing.

It follows, and the tests check:

- a principal without debt is served after at most one request of each other principal, however many those queue;
- of two principals that always have requests waiting, neither gets ahead by more than its last request and one quantum;
- idle rounds pay off debt but earn no credit; when the ring is empty, all debt is forgotten.

Knows nothing about threads, clocks, slots or what an item is.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(slots=True)
class _Line(Generic[Item]):
    """One principal's requests, oldest first. ``balance`` (tokens) includes the credits up to ``credited_round``."""

    balance: int
    credited_round: int
    waiting: deque[tuple[Item, int]] = field(default_factory=deque)


class Rotation(Generic[Item]):
    """The ring of lines. Not thread-safe: the queue's lock guards it."""

    def __init__(self, quantum_tokens: int = 256) -> None:
        self._quantum = quantum_tokens
        self._lines: OrderedDict[str, _Line[Item]] = OrderedDict()  # with waiting requests; the first is visited next
        self._debtors: dict[str, _Line[Item]] = {}  # nothing waits, but the balance is still negative
        self._round = 0

    def __len__(self) -> int:
        """Number of waiting requests."""
        return sum(len(line.waiting) for line in self._lines.values())

    def add(self, principal_id: str, item: Item, cost_tokens: int) -> None:
        """Append a request to its principal's line; a new line goes to the end of the ring."""
        line = self._lines.get(principal_id)
        if line is None:
            line = self._debtors.pop(principal_id, None) or _Line(balance=0, credited_round=self._round - 1)
            self._lines[principal_id] = line
        line.waiting.append((item, max(cost_tokens, self._quantum)))

    def take(self) -> Item | None:
        """Remove and return the request whose turn it is; None when nothing waits."""
        while self._lines:
            principal_id, line = next(iter(self._lines.items()))
            if line.credited_round == self._round:
                self._begin_round()
            self._credit(line)
            if line.balance > 0:
                item, cost = line.waiting.popleft()
                line.balance -= cost
                self._step_back(principal_id, line)
                return item
            self._lines.move_to_end(principal_id)
        return None

    def remove(self, principal_id: str, item: Item) -> None:
        """Remove an abandoned request. One that is not in line is ignored: its turn has just come."""
        line = self._lines.get(principal_id)
        if line is None:
            return
        line.waiting = deque(entry for entry in line.waiting if entry[0] is not item)
        if not line.waiting:
            self._step_back(principal_id, line)

    def order(self) -> list[Item]:
        """All waiting requests in the order :meth:`take` would return them if no other came."""
        rehearsal: Rotation[Item] = Rotation(self._quantum)
        rehearsal._round = self._round
        for principal_id, line in self._lines.items():
            copied = _Line(line.balance, line.credited_round, deque(line.waiting))
            rehearsal._lines[principal_id] = copied
        items: list[Item] = []
        while (item := rehearsal.take()) is not None:
            items.append(item)
        return items

    def _credit(self, line: _Line[Item]) -> None:
        due = (self._round - line.credited_round) * self._quantum
        line.balance = min(line.balance + due, self._quantum)
        line.credited_round = self._round

    def _begin_round(self) -> None:
        """Advance to the next round that can serve a request, skipping rounds that only add credit."""
        missing = [self._rounds_until_served(line) for line in self._lines.values()]
        self._round += max(1, min(missing))
        self._debtors = {name: line for name, line in self._debtors.items() if self._rounds_until_served(line) > 0}

    def _rounds_until_served(self, line: _Line[Item]) -> int:
        """Rounds until the line's balance is positive; 0 or less if it already is."""
        balance = line.balance + (self._round - line.credited_round) * self._quantum
        return -balance // self._quantum + 1

    def _step_back(self, principal_id: str, line: _Line[Item]) -> None:
        """Move a line to the end of the ring, or out of it when nothing of this principal waits."""
        if line.waiting:
            self._lines.move_to_end(principal_id)
            return
        del self._lines[principal_id]
        if self._lines:
            self._debtors[principal_id] = line
        else:
            self._debtors.clear()
