"""Requests a minute over a sliding window, by the package ``limits``: in memory, or in Redis for several replicas.

Knows nothing about who asks. Redis down is StoreUnavailable: an unlimited caller is not an option. While it hangs, one
caller now and then waits for it, and nobody else.

In memory the moments are of the monotonic clock, so a clock that is put right changes nothing. In Redis they are of the
replicas' clocks, and what one that was ahead has left behind lives for a minute: Redis lets the key expire by then.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from limits import RateLimitItemPerMinute
from limits.errors import StorageError
from limits.storage import MemoryStorage, storage_from_string
from limits.storage.memory import Entry
from limits.strategies import MovingWindowRateLimiter

from chatsvc.errors import LimitExceeded, StoreUnavailable
from chatsvc.store.breaker import Breaker

_REDIS_OPTIONS = {"socket_timeout": 2.0, "socket_connect_timeout": 2.0}
_SWEEP_S = 10.0
_WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class RateState:
    """What is left of the tightest limit, and when the window has moved past the oldest request."""

    limit: int
    remaining: int
    reset_s: float


class _Sweeping:
    """Forgets requests of long ago now and then, when it is asked whether it still will."""

    def __init__(self, storage: MemoryStorage) -> None:
        self._storage = storage
        self._due_at = time.monotonic() + _SWEEP_S

    def is_alive(self) -> bool:
        """Always."""
        if time.monotonic() >= self._due_at:
            self._due_at = time.monotonic() + _SWEEP_S
            self.sweep()
        return True

    def sweep(self) -> None:
        """Forget now."""
        for key in list(self._storage.events):
            with self._storage.locks[key]:
                now = time.monotonic()
                kept = [entry for entry in self._storage.events.pop(key, []) if entry.expiry > now]
                if kept:
                    self._storage.events[key] = kept
                else:
                    self._storage.locks.pop(key, None)


class _Memory(MemoryStorage):
    """The package's, by the monotonic clock, and without its timer.

    The timer is a new thread at nearly every request, dearer than the counting.
    """

    def __init__(self) -> None:
        super().__init__()
        self.timer.cancel()
        self.timer = _Sweeping(self)  # type: ignore[assignment] # it is asked for nothing else

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Count ``amount`` requests, unless more than ``limit`` would lie in the last ``expiry`` seconds."""
        self.timer.is_alive()
        now = time.monotonic()
        with self.locks[key]:
            entries = self.events.setdefault(key, [])  # the newest first
            position = limit - amount
            if position < 0 or (position < len(entries) and entries[position].atime >= now - expiry):
                return False
            entry = Entry(expiry)
            entry.atime, entry.expiry = now, now + expiry
            entries[:0] = [entry] * amount
            return True

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:  # noqa: ARG002 (the package's)
        """When the oldest request of the window was, and how many there are."""
        now = time.monotonic()
        entries = self.events.get(key, [])
        num_inside = bisect.bisect_left(entries, -(now - expiry), key=lambda entry: -entry.atime)
        return (entries[num_inside - 1].atime if num_inside else now), num_inside


class Rates:
    """Counts requests.

    Args:
        url: ``redis://…``, or None for this process's memory.
    """

    def __init__(self, url: str | None = None) -> None:
        storage = storage_from_string(url, wrap_exceptions=True, **_REDIS_OPTIONS) if url else _Memory()
        self._clock: Callable[[], float] = time.time if url else time.monotonic  # that of the storage
        self._limiter = MovingWindowRateLimiter(storage)
        self._breaker = Breaker()

    def hit(self, limits: Sequence[tuple[str, int]]) -> RateState:
        """Count one request against each (bucket, requests a minute).

        Raises:
            LimitExceeded: one of them is used up; those before it in the sequence have counted the request.
            StoreUnavailable: Redis is down.
        """
        with self._outages():
            for bucket, per_minute in limits:
                if not self._limiter.hit(RateLimitItemPerMinute(per_minute), bucket):
                    raise LimitExceeded(
                        f"You may send {per_minute} requests a minute; wait for the time in Retry-After.",
                        retry_after_s=self._state([(bucket, per_minute)]).reset_s,
                    )
            return self._state(limits)

    def state(self, limits: Sequence[tuple[str, int]]) -> RateState:
        """What is left, without counting.

        Raises:
            StoreUnavailable: Redis is down.
        """
        with self._outages():
            return self._state(limits)

    def ping(self) -> None:
        """Count nothing.

        Raises:
            StoreUnavailable: Redis is down.
        """
        self.state([("ping", 1)])

    @contextmanager
    def _outages(self) -> Iterator[None]:
        try:
            with self._breaker.watch(StorageError):
                yield
        except StorageError as error:
            raise StoreUnavailable from error

    def _state(self, limits: Sequence[tuple[str, int]]) -> RateState:
        states = []
        for bucket, per_minute in limits:
            window = self._limiter.get_window_stats(RateLimitItemPerMinute(per_minute), bucket)
            reset_s = min(max(0.0, window.reset_time - self._clock()), _WINDOW_S)
            states.append(RateState(per_minute, window.remaining, reset_s))
        return min(states, key=lambda state: state.remaining)
