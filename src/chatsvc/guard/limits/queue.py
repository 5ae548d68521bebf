"""The room: so many run, so many may wait for their turn, nobody else comes in.

A caller enters, lines up once it knows what it will cost, waits for its turn, and leaves::

    place = room.enter(principal_id)            # refused here, at once, or never
    try:
        while not place.wait_turn(cost_tokens, timeout_s=0.25):
            ...                                 # look after the client; place.position() tells how far it is
        ...                                     # one of the slots is ours
    finally:
        place.leave()

Whose turn is next is :mod:`chatsvc.guard.limits.fair`'s decision. All state is under one lock, never held while
waiting. Knows nothing about requests, tokens' texts or the engine.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from typing import Literal

from chatsvc.errors import LimitExceeded, Overloaded
from chatsvc.guard.limits.fair import Rotation

# What a slot is held for, as long as nobody has left one yet.
_UNSEEN_HOLD_S = 10.0
# How much the last caller counts in the mean of what slots are held for.
_NEWEST_SHARE = 0.125


class Place:
    """A caller's place in the room. Its methods may be called from any thread; :meth:`leave` must be."""

    def __init__(self, room: Room, principal_id: str, key_id: str | None) -> None:
        self.principal_id = principal_id
        self.key_id = key_id
        self.state: Literal["entered", "waiting", "running", "left"] = "entered"
        self.running_since = 0.0
        self.woken = threading.Event()
        self._room = room

    def wait_turn(self, cost_tokens: int, timeout_s: float) -> bool:
        """Line up (the first call does) and wait for a slot; False when the time is over first."""
        self._room.line_up(self, cost_tokens)
        self.woken.wait(timeout_s)
        return self._room.has_turn(self)

    def position(self) -> int:
        """How many turns until this one's, itself included; 0 when it has come."""
        return self._room.position(self)

    def estimate_s(self) -> float | None:
        """How long until the turn comes, from what slots were held for so far; None when nobody has left yet."""
        return self._room.estimate_s(self)

    def leave(self) -> None:
        """Give the place back. Again is fine."""
        self._room.release(self)


class Room:
    """``max_running`` slots, ``max_waiting`` places to wait, ``max_per_principal`` of both for one principal."""

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
        self._places: set[Place] = set()
        self._running: set[Place] = set()
        self._rotation: Rotation[Place] = Rotation()
        self._positions: dict[Place, int] | None = None  # made when asked for, thrown away when anything moves
        self._mean_hold_s: float | None = None
        self._num_sent_away = 0  # refused, and not yet made up for by somebody leaving

    @property
    def num_running(self) -> int:
        """Callers that hold a slot."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Callers that are inside without a slot."""
        with self._lock:
            return len(self._places) - len(self._running)

    def enter(
        self,
        principal_id: str,
        *,
        max_own: int | None = None,
        key_id: str | None = None,
        max_of_key: int | None = None,
    ) -> Place:
        """Come in, to wait or to run.

        ``max_own`` replaces ``max_per_principal`` for a principal with its own limit; ``max_of_key`` is how many of
        those may have come with this one key.

        Raises:
            LimitExceeded: this principal, or this key, has as many inside as it may.
            Overloaded: all places are taken.
        """
        max_own = self._max_per_principal if max_own is None else max_own
        with self._lock:
            own = [place for place in self._places if place.principal_id == principal_id]
            of_key = [place for place in own if place.key_id == key_id]
            if max_of_key is not None and len(of_key) >= max_of_key:
                raise self._too_many(of_key, max_of_key, "the key's")
            if len(own) >= max_own:
                raise self._too_many(own, max_own, "your")
            if len(self._places) >= self._max_running + self._max_waiting:
                self._num_sent_away += 1
                raise Overloaded(retry_after_s=self._turns_s(min(self._num_sent_away, len(self._places))))
            place = Place(self, principal_id, key_id)
            self._places.add(place)
            return place

    def places_of(self, principal_id: str) -> list[Place]:
        """Where a principal's requests stand now, for telling it so."""
        with self._lock:
            return [place for place in self._places if place.principal_id == principal_id]

    # What a Place asks for.

    def line_up(self, place: Place, cost_tokens: int) -> None:
        """The first time, put the place where its turn can come."""
        with self._lock:
            if place.state == "entered":
                place.state = "waiting"
                self._rotation.add(place.principal_id, place, cost_tokens)
                self._positions = None
                self._fill_slots()

    def has_turn(self, place: Place) -> bool:
        """Whether the place holds a slot."""
        with self._lock:
            return place.state == "running"

    def position(self, place: Place) -> int:
        """See :meth:`Place.position`. Who has not lined up yet counts as the last."""
        with self._lock:
            if place.state in ("running", "left"):
                return 0
            if self._positions is None:
                self._positions = {waiting: turn for turn, waiting in enumerate(self._rotation.order(), start=1)}
            return self._positions.get(place, len(self._positions) + 1)

    def estimate_s(self, place: Place) -> float | None:
        """See :meth:`Place.estimate_s`."""
        position = self.position(place)
        with self._lock:
            return None if self._mean_hold_s is None else self._turns_s(position)

    def release(self, place: Place) -> None:
        """See :meth:`Place.leave`."""
        with self._lock:
            if place.state == "left":
                return
            if place.state == "running":
                self._running.remove(place)
                self._learn(self._clock() - place.running_since)
            elif place.state == "waiting":
                self._rotation.remove(place.principal_id, place)
            place.state = "left"
            self._places.remove(place)
            self._num_sent_away = max(0, self._num_sent_away - 1)
            self._positions = None
            self._fill_slots()

    # Under the lock.

    def _fill_slots(self) -> None:
        while len(self._running) < self._max_running and (place := self._rotation.take()) is not None:
            place.state = "running"
            place.running_since = self._clock()
            self._running.add(place)
            self._positions = None
            place.woken.set()

    def _learn(self, hold_s: float) -> None:
        mean = hold_s if self._mean_hold_s is None else self._mean_hold_s
        self._mean_hold_s = mean + _NEWEST_SHARE * (hold_s - mean)

    def _hold_s(self) -> float:
        """What a slot is held for: the mean of those who left, or more when those who run have taken longer already."""
        seen = _UNSEEN_HOLD_S if self._mean_hold_s is None else self._mean_hold_s
        if not self._running:
            return seen
        now = self._clock()
        return max(seen, sum(now - place.running_since for place in self._running) / len(self._running))

    def _turns_s(self, num_turns: int) -> float:
        """How long until so many have left, when all slots are held."""
        return num_turns * self._hold_s() / max(self._max_running, 1)

    def _too_many(self, held: Collection[Place], max_held: int, whose: str) -> LimitExceeded:
        num_running = sum(place.state == "running" for place in held)
        if num_running:
            retry_after_s = self._hold_s() / num_running
        else:
            retry_after_s = self._turns_s(len(self._places) - len(self._running)) + self._hold_s()
        return LimitExceeded(
            f"You have {max_held} requests running or waiting, which is {whose} limit; wait for one to end.",
            retry_after_s=retry_after_s,
            code="concurrency_limit_exceeded",
        )
