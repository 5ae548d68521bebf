"""The bounded queue in front of the engine: ``max_running`` requests hold a slot, ``max_waiting`` wait for one.

A caller enters, waits once it knows what it will cost, and leaves::

    ticket = queue.enter(principal_id)          # the only call that refuses: at once, before any work
    try:
        while not ticket.wait_turn(cost_tokens, timeout_s=0.25):
            ...                                 # is the client still there? ticket.position() for its progress
        ...                                     # the caller holds a slot
    finally:
        ticket.leave()

:mod:`chatsvc.guard.limits.fair` decides whose turn is next. One lock guards all state and is never held while waiting.
Knows nothing about requests, texts or the engine.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from typing import Literal

from chatsvc.errors import LimitExceeded, Overloaded
from chatsvc.guard.limits.fair import Rotation

# How long a slot is assumed to be held until the first one has been released.
_FIRST_HOLD_S = 10.0
# Weight of the newest hold in the moving average of hold times.
_NEWEST_SHARE = 0.125


class Ticket:
    """One caller's position in the queue, and its slot later. Every ticket must be given back by :meth:`leave`.

    The methods may be called from any thread.
    """

    def __init__(self, queue: Queue, principal_id: str, key_id: str | None) -> None:
        self.principal_id = principal_id
        self.key_id = key_id
        self.state: Literal["entered", "waiting", "running", "left"] = "entered"
        self.running_since = 0.0
        self.woken = threading.Event()
        self._queue = queue

    def wait_turn(self, cost_tokens: int, timeout_s: float) -> bool:
        """Wait up to ``timeout_s`` for a slot; whether one is held now. The first call joins the line."""
        self._queue.line_up(self, cost_tokens)
        self.woken.wait(timeout_s)
        return self._queue.has_turn(self)

    def position(self) -> int:
        """1 for the next in line; 0 once it holds a slot or has left."""
        return self._queue.position(self)

    def estimate_s(self) -> float | None:
        """Expected wait, from how long slots were held so far; None until the first slot was released."""
        return self._queue.estimate_s(self)

    def leave(self) -> None:
        """Leave the queue and release the slot, if any. Further calls do nothing."""
        self._queue.release(self)


class Queue:
    """The queue.

    Args:
        max_running: slots.
        max_waiting: callers that may be in the queue without a slot.
        max_per_principal: callers of one principal, running and waiting together.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        max_running: int,
        max_waiting: int,
        max_per_principal: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._max_per_principal = max_per_principal
        self._clock = clock
        self._lock = threading.Lock()
        self._tickets: set[Ticket] = set()
        self._running: set[Ticket] = set()
        self._rotation: Rotation[Ticket] = Rotation()
        self._positions: dict[Ticket, int] | None = None  # a cache, dropped whenever the order may have changed
        self._mean_hold_s: float | None = None
        self._num_refused = 0  # refusals less releases, at least 0: how many will probably come back before this one

    @property
    def num_running(self) -> int:
        """Callers that hold a slot."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Callers in the queue without a slot."""
        with self._lock:
            return len(self._tickets) - len(self._running)

    def enter(
        self,
        principal_id: str,
        *,
        max_own: int | None = None,
        key_id: str | None = None,
        max_of_key: int | None = None,
    ) -> Ticket:
        """Take a ticket.

        Args:
            principal_id: whose fair share the ticket uses.
            max_own: replaces ``max_per_principal`` for a principal with its own limit.
            key_id: the API key, if any.
            max_of_key: how many tickets this key may hold.

        Raises:
            LimitExceeded: the principal or the key holds as many tickets as it may.
            Overloaded: the queue is full.
        """
        max_own = self._max_per_principal if max_own is None else max_own
        with self._lock:
            own = [ticket for ticket in self._tickets if ticket.principal_id == principal_id]
            of_key = [ticket for ticket in own if ticket.key_id == key_id]
            if max_of_key is not None and len(of_key) >= max_of_key:
                raise self._too_many(of_key, max_of_key, "the key's")
            if len(own) >= max_own:
                raise self._too_many(own, max_own, "your")
            if len(self._tickets) >= self._max_running + self._max_waiting:
                self._num_refused += 1
                raise Overloaded(retry_after_s=self._turns_s(min(self._num_refused, len(self._tickets))))
            ticket = Ticket(self, principal_id, key_id)
            self._tickets.add(ticket)
            return ticket

    def tickets_of(self, principal_id: str) -> list[Ticket]:
        """The tickets a principal holds now."""
        with self._lock:
            return [ticket for ticket in self._tickets if ticket.principal_id == principal_id]

    # Called by Ticket.

    def line_up(self, ticket: Ticket, cost_tokens: int) -> None:
        """Join the line; further calls do nothing."""
        with self._lock:
            if ticket.state == "entered":
                ticket.state = "waiting"
                self._rotation.add(ticket.principal_id, ticket, cost_tokens)
                self._positions = None
                self._fill_slots()

    def has_turn(self, ticket: Ticket) -> bool:
        """Whether the ticket holds a slot."""
        with self._lock:
            return ticket.state == "running"

    def position(self, ticket: Ticket) -> int:
        """See :meth:`Ticket.position`. A ticket that has not joined the line counts as the last."""
        with self._lock:
            if ticket.state in ("running", "left"):
                return 0
            if self._positions is None:
                self._positions = {waiting: turn for turn, waiting in enumerate(self._rotation.order(), start=1)}
            return self._positions.get(ticket, len(self._positions) + 1)

    def estimate_s(self, ticket: Ticket) -> float | None:
        """See :meth:`Ticket.estimate_s`."""
        position = self.position(ticket)
        with self._lock:
            return None if self._mean_hold_s is None else self._turns_s(position)

    def release(self, ticket: Ticket) -> None:
        """See :meth:`Ticket.leave`."""
        with self._lock:
            if ticket.state == "left":
                return
            if ticket.state == "running":
                self._running.remove(ticket)
                self._learn(self._clock() - ticket.running_since)
            elif ticket.state == "waiting":
                self._rotation.remove(ticket.principal_id, ticket)
            ticket.state = "left"
            self._tickets.remove(ticket)
            self._num_refused = max(0, self._num_refused - 1)
            self._positions = None
            self._fill_slots()

    # Called with the lock held.

    def _fill_slots(self) -> None:
        while len(self._running) < self._max_running and (ticket := self._rotation.take()) is not None:
            ticket.state = "running"
            ticket.running_since = self._clock()
            self._running.add(ticket)
            self._positions = None
            ticket.woken.set()

    def _learn(self, hold_s: float) -> None:
        mean = hold_s if self._mean_hold_s is None else self._mean_hold_s
        self._mean_hold_s = mean + _NEWEST_SHARE * (hold_s - mean)

    def _hold_s(self) -> float:
        """Expected hold time of a slot: the average so far, or the mean age of the running ones if that is more."""
        seen = _FIRST_HOLD_S if self._mean_hold_s is None else self._mean_hold_s
        if not self._running:
            return seen
        now = self._clock()
        return max(seen, sum(now - ticket.running_since for ticket in self._running) / len(self._running))

    def _turns_s(self, num_turns: int) -> float:
        """Expected time until ``num_turns`` slots were released, with all slots in use."""
        return num_turns * self._hold_s() / max(self._max_running, 1)

    def _too_many(self, held: Collection[Ticket], max_held: int, whose: str) -> LimitExceeded:
        num_running = sum(ticket.state == "running" for ticket in held)
        if num_running:
            retry_after_s = self._hold_s() / num_running
        else:
            retry_after_s = self._turns_s(len(self._tickets) - len(self._running)) + self._hold_s()
        return LimitExceeded(
            f"You have {max_held} requests running or waiting, which is {whose} limit; wait for one to end.",
            retry_after_s=retry_after_s,
            code="concurrency_limit_exceeded",
        )
