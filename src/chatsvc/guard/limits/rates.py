"""Requests a minute over a sliding window, by the package ``limits``: in memory, or in Redis for several replicas.

While Redis is down, requests are refused (:class:`StoreUnavailable`), never unlimited. While Redis hangs, a breaker
lets one caller at a time wait for it and refuses the others at once. Knows nothing about principals.

Times in memory come from the monotonic clock, so setting the system clock changes nothing. Times in Redis come from the
replicas' system clocks; entries of a clock that was ahead disappear after a minute, because Redis expires their key.
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
    """The tightest limit, and the seconds until the oldest counted request leaves the window."""

    limit: int
    remaining: int
    reset_s: float


class _Sweeper:
    """Deletes expired entries every 10 s. Stands in for the package's timer, which it polls by ``is_alive``."""

    def __init__(self, storage: MemoryStorage) -> None:
        self._storage = storage
        self._due_at = time.monotonic() + _SWEEP_S

    def is_alive(self) -> bool:
        """Sweep if it is due; always true, so the package starts no timer."""
        if time.monotonic() >= self._due_at:
            self._due_at = time.monotonic() + _SWEEP_S
            self.sweep()
        return True

    def sweep(self) -> None:
        """Delete expired entries, and the locks of keys without entries."""
        for key in list(self._storage.events):
            with self._storage.locks[key]:
                now = time.monotonic()
                kept = [entry for entry in self._storage.events.pop(key, []) if entry.expiry > now]
                if kept:
                    self._storage.events[key] = kept
                else:
                    self._storage.locks.pop(key, None)


class _Memory(MemoryStorage):
    """The package's storage on the monotonic clock, without its timer.

    The package starts a timer thread with nearly every request, which costs more than counting the request.
    """

    def __init__(self) -> None:
        super().__init__()
        self.timer.cancel()
        self.timer = _Sweeper(self)  # type: ignore[assignment] # the package only calls is_alive()

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Count ``amount`` requests unless the last ``expiry`` seconds would then hold more than ``limit``."""
        self.timer.is_alive()
        now = time.monotonic()
        with self.locks[key]:
            entries = self.events.setdefault(key, [])  # newest first
            position = limit - amount
            if position < 0 or (position < len(entries) and entries[position].atime >= now - expiry):
                return False
            entry = Entry(expiry)
            entry.atime, entry.expiry = now, now + expiry
            entries[:0] = [entry] * amount
            return True

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:  # noqa: ARG002 (the package's signature)
        """Time of the oldest request in the window (now if there is none), and the number of requests in it."""
        now = time.monotonic()
        entries = self.events.get(key, [])
        num_inside = bisect.bisect_left(entries, -(now - expiry), key=lambda entry: -entry.atime)
        return (entries[num_inside - 1].atime if num_inside else now), num_inside


class Rates:
    """Counts requests against limits.

    Args:
        url: ``redis://…``, or None to count in this process's memory.
    """

    def __init__(self, url: str | None = None) -> None:
        storage = storage_from_string(url, wrap_exceptions=True, **_REDIS_OPTIONS) if url else _Memory()
        self._clock: Callable[[], float] = time.time if url else time.monotonic  # the storage's clock
        self._limiter = MovingWindowRateLimiter(storage)
        self._breaker = Breaker()

    def hit(self, limits: Sequence[tuple[str, int]]) -> RateState:
        """Count one request against each (bucket, requests a minute).

        Raises:
            LimitExceeded: one of them is used up; the buckets before it in the sequence have counted the request.
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
        """The tightest limit, without counting a request.

        Raises:
            StoreUnavailable: Redis is down.
        """
        with self._outages():
            return self._state(limits)

    def ping(self) -> None:
        """Ask Redis for an answer.

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
