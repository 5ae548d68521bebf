"""What a request that came through the gate holds until it ends. Knows its place and its quota, not what it asks."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from chatsvc.errors import LimitExceeded, StoreUnavailable
from chatsvc.guard.limits.queue import Place
from chatsvc.guard.limits.quotas import QuotaOf, QuotaState, Reserved
from chatsvc.guard.limits.rates import RateState
from chatsvc.guard.principal import Principal

# How long a stream may go on when the store cannot say whether its session lives. It is looked up every half second, so
# the second look that fails ends it: about a second, as the contract says.
_BLIND_S = 0.9


@dataclass(frozen=True, slots=True)
class Standing:
    """What a principal has left."""

    rate: RateState
    quota: QuotaState


class Admission:
    """One admitted request. Release it in a ``finally``; what was charged and not settled is given back then."""

    def __init__(
        self,
        principal: Principal,
        place: Place,
        quota: QuotaOf,
        standing: Standing,
        is_revoked: Callable[[Principal], bool],
    ) -> None:
        self.principal = principal
        self._place = place
        self._quota = quota
        self._standing = standing
        self._is_revoked = is_revoked
        self._reserved: Reserved | None = None
        self._seen_alive_at = time.monotonic()
        self._lock = threading.Lock()

    def charge(self, num_tokens: int) -> None:
        """Reserve the prompt and all tokens that may be made.

        Raises:
            LimitExceeded: they do not fit into what is left of today.
        """
        assert self._reserved is None, "an admission is charged once"
        try:
            self._reserved = self._quota.reserve(num_tokens)
        except LimitExceeded as error:
            error.headers.update(self.limits_headers())
            raise
        self._standing = replace(self._standing, quota=self._reserved.state)

    def settle(self, num_tokens: int) -> None:
        """Count what was really used. Only the first call counts."""
        with self._lock:
            reserved, self._reserved = self._reserved, None
        if reserved is not None:
            self._quota.settle(reserved.id, num_tokens)

    def wait_turn(self, cost_tokens: int, timeout_s: float) -> bool:
        """Wait for a slot; False when the time is over first. Call it again then.

        Raises:
            Draining: the service is going down.
        """
        return self._place.wait_turn(cost_tokens, timeout_s)

    def position(self) -> int:
        """How many turns until this one's, itself included; 0 when it has come."""
        return self._place.position()

    def estimate_s(self) -> float | None:
        """How long until the turn comes; None when nobody can tell yet."""
        return self._place.estimate_s()

    def is_revoked(self) -> bool:
        """Whether logout, a password change, disabling or revoking has ended what this request came in with.

        Raises:
            StoreUnavailable: the store has been unable to say for too long.
        """
        now = time.monotonic()
        try:
            revoked = self._is_revoked(self.principal)
        except StoreUnavailable:
            if now - self._seen_alive_at > _BLIND_S:
                raise
            return False
        self._seen_alive_at = now
        return revoked

    def release(self) -> None:
        """Give the place back. Again is fine."""
        try:
            self.settle(0)
        finally:
            self._place.leave()

    def limits_headers(self) -> dict[str, str]:
        """The ``x-ratelimit-*`` headers, as of the last charge."""
        return limits_headers(self._standing)


def limits_headers(standing: Standing) -> dict[str, str]:
    """OpenAI's headers, with OpenAI's way to write a duration."""
    return {
        "x-ratelimit-limit-requests": str(standing.rate.limit),
        "x-ratelimit-remaining-requests": str(standing.rate.remaining),
        "x-ratelimit-reset-requests": duration_text(standing.rate.reset_s),
        "x-ratelimit-limit-tokens": str(standing.quota.limit),
        "x-ratelimit-remaining-tokens": str(standing.quota.remaining),
        "x-ratelimit-reset-tokens": duration_text(standing.quota.reset_s),
    }


def duration_text(seconds: float) -> str:
    """``6m0s``, ``11h46m3s``, ``1s``."""
    whole = max(0, math.ceil(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s" if minutes else f"{rest}s"
