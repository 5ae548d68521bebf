"""Whose turn is next: deficit round robin over tokens, between principals.

Those who wait stand in a ring, one line a principal. A round visits every line once and credits it with a quantum of
tokens; a line with a positive balance then has its *first* request served, and only that one, and the request's cost is
taken off the balance. So the balance may go below zero, and a line in debt is passed over until its credits have paid.
A request costs at least one quantum, so that many small ones are no way round the ring.

What follows, and what the tests hold it to:

- who is in no debt is served after at most one request of every other principal, however many those have waiting;
- of two principals who always have something waiting, none gets ahead by more than its last request and one quantum;
- an idle time pays debts like a waiting one, but earns no credit; when nobody waits any more, debts are forgotten.

Knows nothing about threads, clocks, slots or what an item is.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(slots=True)
class _Line(Generic[Item]):
    """One principal's requests, oldest first. ``credited_round`` is the last round whose credit is in ``balance``."""

    balance: int
    credited_round: int
    waiting: deque[tuple[Item, int]] = field(default_factory=deque)


class Rotation(Generic[Item]):
    """The ring of those who wait. One owner at a time: there is no lock in here."""

    def __init__(self, quantum_tokens: int = 256) -> None:
        self._quantum = quantum_tokens
        self._lines: OrderedDict[str, _Line[Item]] = OrderedDict()  # who waits; the first is visited next
        self._debtors: dict[str, _Line[Item]] = {}  # who does not wait, but has not paid yet
        self._round = 0

    def __len__(self) -> int:
        """How many requests wait."""
        return sum(len(line.waiting) for line in self._lines.values())

    def add(self, principal_id: str, item: Item, cost_tokens: int) -> None:
        """Put a request at the end of its principal's line, and a new line at the end of the ring."""
        line = self._lines.get(principal_id)
        if line is None:
            line = self._debtors.pop(principal_id, None) or _Line(balance=0, credited_round=self._round - 1)
            self._lines[principal_id] = line
        line.waiting.append((item, max(cost_tokens, self._quantum)))

    def take(self) -> Item | None:
        """The request whose turn it is, out of the ring; None when nobody waits."""
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
        """Take out a request that nobody wants any more. What is not there is ignored: its turn has just come."""
        line = self._lines.get(principal_id)
        if line is None:
            return
        line.waiting = deque(entry for entry in line.waiting if entry[0] is not item)
        if not line.waiting:
            self._step_back(principal_id, line)

    def order(self) -> list[Item]:
        """All requests in the order in which they would be taken if nothing else came."""
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
        """Begin the next round in which somebody can be served; the empty ones between would change nothing else."""
        missing = [self._rounds_until_served(line) for line in self._lines.values()]
        self._round += max(1, min(missing))
        self._debtors = {name: line for name, line in self._debtors.items() if self._rounds_until_served(line) > 0}

    def _rounds_until_served(self, line: _Line[Item]) -> int:
        """How many rounds from now until the line's balance is positive; 0 or less when it is by now."""
        balance = line.balance + (self._round - line.credited_round) * self._quantum
        return -balance // self._quantum + 1

    def _step_back(self, principal_id: str, line: _Line[Item]) -> None:
        """To the end of the ring, or out of it when nothing of this principal waits."""
        if line.waiting:
            self._lines.move_to_end(principal_id)
            return
        del self._lines[principal_id]
        if self._lines:
            self._debtors[principal_id] = line
        else:
            self._debtors.clear()
