"""What an admitted request holds until it ends: its ticket in the queue and its reserved tokens of the daily quota.

Knows nothing about what the request asks.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from chatsvc.errors import LimitExceeded, StoreUnavailable
from chatsvc.guard.limits.queue import Ticket
from chatsvc.guard.limits.quotas import Bucket, Quotas, QuotaState, Reserved
from chatsvc.guard.limits.rates import RateState
from chatsvc.guard.principal import Principal

# How long a stream may continue while the store cannot say whether its session was revoked. The stream asks every half
# second, so the second failure in a row ends it, after about one second.
_MAX_UNVERIFIED_S = 0.9


@dataclass(frozen=True, slots=True)
class Standing:
    """A principal's rate and quota, and what is left of them."""

    rate: RateState
    quota: QuotaState


class Admission:
    """One admitted request. Call :meth:`release` in a ``finally``: it returns tokens that were charged, not settled."""

    def __init__(
        self,
        principal: Principal,
        ticket: Ticket,
        standing: Standing,
        quotas: Quotas,
        buckets: Sequence[Bucket],
        is_revoked: Callable[[Principal], bool],
    ) -> None:
        self.principal = principal
        self._ticket = ticket
        self._standing = standing
        self._quotas = quotas
        self._buckets = buckets
        self._is_revoked = is_revoked
        self._reserved: Reserved | None = None
        self._verified_at = time.monotonic()
        self._lock = threading.Lock()

    def charge(self, num_tokens: int) -> None:
        """Reserve tokens of the daily quota: the prompt's, and all that may be generated.

        Raises:
            LimitExceeded: fewer are left today.
            StoreUnavailable: the database is down.
        """
        assert self._reserved is None, "an admission is charged once"
        try:
            self._reserved = self._quotas.reserve(self._buckets, num_tokens)
        except LimitExceeded as error:
            error.headers.update(self.limits_headers())
            raise
        self._standing = replace(self._standing, quota=self._reserved.state)

    def settle(self, num_tokens: int) -> None:
        """Replace the reservation by the tokens really used. Only the first call counts."""
        with self._lock:
            reserved, self._reserved = self._reserved, None
        if reserved is not None:
            self._quotas.settle(reserved.id, num_tokens)

    def wait_turn(self, cost_tokens: int, timeout_s: float) -> bool:
        """See :meth:`chatsvc.guard.limits.queue.Ticket.wait_turn`."""
        return self._ticket.wait_turn(cost_tokens, timeout_s)

    def position(self) -> int:
        """See :meth:`chatsvc.guard.limits.queue.Ticket.position`."""
        return self._ticket.position()

    def estimate_s(self) -> float | None:
        """See :meth:`chatsvc.guard.limits.queue.Ticket.estimate_s`."""
        return self._ticket.estimate_s()

    def is_revoked(self) -> bool:
        """Whether the request's credential was revoked since: logout, new password, disabled account, revoked key.

        Raises:
            StoreUnavailable: the database has not answered for about a second.
        """
        now = time.monotonic()
        try:
            revoked = self._is_revoked(self.principal)
        except StoreUnavailable:
            if now - self._verified_at > _MAX_UNVERIFIED_S:
                raise
            return False
        self._verified_at = now
        return revoked

    def release(self) -> None:
        """Settle what was charged as unused, and leave the queue. Further calls do nothing."""
        try:
            self.settle(0)
        finally:
            self._ticket.leave()

    def limits_headers(self) -> dict[str, str]:
        """The ``x-ratelimit-*`` headers as of the last charge."""
        return limits_headers(self._standing)


def limits_headers(standing: Standing) -> dict[str, str]:
    """OpenAI's ``x-ratelimit-*`` headers."""
    return {
        "x-ratelimit-limit-requests": str(standing.rate.limit),
        "x-ratelimit-remaining-requests": str(standing.rate.remaining),
        "x-ratelimit-reset-requests": duration_text(standing.rate.reset_s),
        "x-ratelimit-limit-tokens": str(standing.quota.limit),
        "x-ratelimit-remaining-tokens": str(standing.quota.remaining),
        "x-ratelimit-reset-tokens": duration_text(standing.quota.reset_s),
    }


def duration_text(seconds: float) -> str:
    """A duration as OpenAI writes it: ``6m0s``, ``11h46m3s``, ``1s``; rounded up, at least ``0s``."""
    whole = max(0, math.ceil(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s" if minutes else f"{rest}s"
