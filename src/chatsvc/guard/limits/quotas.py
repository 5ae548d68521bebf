"""Daily token quotas: reserved before a generation, settled after it, exact under any concurrency.

One SQL statement checks the limit and adds the reservation, so no interleaving of requests exceeds the limit. Settling
gives back what was not used. A reservation that is never settled (its process died) stays counted in full: what that
generation used is unknown, and the limit must hold.

Days are UTC days of a clock that may have been wrong. So old counts are not deleted by age: see :meth:`Quotas.purge`.
Knows nothing about principals.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Table, bindparam, delete, insert, select, text, update

from chatsvc.errors import LimitExceeded, StoreUnavailable
from chatsvc.store.database import Database, Statement
from chatsvc.store.tables import Reservation, Usage

_DAY_S = 86_400
# A reservation's row is deleted after this; longer than any generation may take.
_KEEP_RESERVATION_S = 86_400
_KEEP_DAYS = 31

# Core tables, not ORM classes: these statements run with every request.
_USAGE: Table = Usage.__table__  # type: ignore[assignment]
_RESERVATION: Table = Reservation.__table__  # type: ignore[assignment]
_THIS = (_USAGE.c.bucket == bindparam("name"), _USAGE.c.day == bindparam("today"))
_ADDING = update(_USAGE).where(*_THIS).values(num_tokens=_USAGE.c.num_tokens + bindparam("more"))
_ADD = Statement(_ADDING)
_ADD_WITHIN = Statement(
    _ADDING.where(_USAGE.c.num_tokens + bindparam("more") <= bindparam("limit")).returning(_USAGE.c.num_tokens)
)
_COUNT = Statement(select(_USAGE.c.num_tokens).where(*_THIS))
_BEGIN_DAY = Statement(  # SQLAlchemy has no ON CONFLICT that both databases share
    text("INSERT INTO usage (bucket, day, num_tokens) VALUES (:name, :today, 0) ON CONFLICT DO NOTHING")
)
_RESERVE = Statement(insert(_RESERVATION))
_TAKE_RESERVATION = Statement(
    delete(_RESERVATION)
    .where(_RESERVATION.c.id == bindparam("reservation"))
    .returning(_RESERVATION.c.buckets, _RESERVATION.c.day, _RESERVATION.c.num_tokens)
)


@dataclass(frozen=True, slots=True)
class Bucket:
    """A counter (of an account or of an API key) and its limit in tokens a day."""

    name: str
    limit: int


@dataclass(frozen=True, slots=True)
class QuotaState:
    """The bucket with the fewest tokens left, and the seconds until the UTC day ends."""

    limit: int
    remaining: int
    reset_s: float


@dataclass(frozen=True, slots=True)
class Reserved:
    """A reservation that is not settled yet."""

    id: str
    num_tokens: int
    state: QuotaState


class Quotas:
    """Counts tokens of each UTC day in the database."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        # (reservation, tokens) that could not be settled during an outage; retried before the next reservation.
        self._unsettled: deque[tuple[str, int]] = deque(maxlen=10_000)

    def state(self, buckets: Sequence[Bucket]) -> QuotaState:
        """What is left in the tightest bucket.

        Raises:
            StoreUnavailable: the database is down.
        """
        today = self._day()
        rows = [self._database.first(_COUNT, {"name": bucket.name, "today": today}) for bucket in buckets]
        return self._tightest(
            [(bucket, row.num_tokens if row else 0) for bucket, row in zip(buckets, rows, strict=True)]
        )

    def reserve(self, buckets: Sequence[Bucket], num_tokens: int) -> Reserved:
        """Reserve tokens in every bucket, or in none.

        Raises:
            LimitExceeded: a bucket has fewer left today.
            StoreUnavailable: the database is down.
        """
        self._settle_late()
        day = self._day()
        reservation_id = uuid.uuid4().hex
        counts: list[tuple[Bucket, int]] = []
        with self._database.counting() as connection:
            for bucket in sorted(buckets, key=lambda bucket: bucket.name):  # one lock order: no deadlock
                values = {"name": bucket.name, "today": day, "more": num_tokens, "limit": bucket.limit}
                counted = _ADD_WITHIN.run(connection, values)
                if counted is None:  # the bucket has no row of today yet, or the limit is reached
                    _BEGIN_DAY.run(connection, {"name": bucket.name, "today": day})
                    counted = _ADD_WITHIN.run(connection, values)
                if counted is None:
                    raise self.exceeded()
                counts.append((bucket, counted.num_tokens))
            row = {"id": reservation_id, "day": day, "num_tokens": num_tokens}
            names = " ".join(bucket.name for bucket in buckets)
            _RESERVE.run(connection, {**row, "buckets": names, "expires_at": self._clock() + _KEEP_RESERVATION_S})
        return Reserved(reservation_id, num_tokens, self._tightest(counts))

    def settle(self, reservation_id: str, num_tokens: int) -> None:
        """Replace a reservation by what was used. Idempotent; during an outage it is deferred, not lost."""
        try:
            self._settle(reservation_id, num_tokens)
        except StoreUnavailable:
            self._unsettled.append((reservation_id, num_tokens))

    def exceeded(self) -> LimitExceeded:
        """The error of an exhausted quota."""
        return LimitExceeded(
            "Too few tokens of today are left; ask for fewer with max_tokens, or come back tomorrow (UTC).",
            retry_after_s=self._until_midnight_s(),
            code="token_quota_exceeded",
        )

    def purge(self) -> None:
        """Delete expired reservations, and counts of all days but the newest 32 that have any.

        Days are compared with each other, not with the clock: a clock that runs a year ahead for an hour adds one day,
        and today's counts survive it.
        """
        newest = select(Usage.day).distinct().order_by(Usage.day.desc()).offset(_KEEP_DAYS).limit(1).scalar_subquery()
        with self._database.session() as session:
            session.execute(delete(Reservation).where(Reservation.expires_at < self._clock()))
            session.execute(delete(Usage).where(Usage.day < newest))

    def _settle(self, reservation_id: str, num_tokens: int) -> None:
        with self._database.counting() as connection:
            row = _TAKE_RESERVATION.run(connection, {"reservation": reservation_id})
            if row is None:
                return
            for name in sorted(row.buckets.split()):
                _ADD.run(connection, {"name": name, "today": row.day, "more": num_tokens - row.num_tokens})

    def _settle_late(self) -> None:
        while self._unsettled:
            try:
                reservation_id, num_tokens = self._unsettled.popleft()
            except IndexError:  # another thread took the last one
                return
            try:
                self._settle(reservation_id, num_tokens)
            except StoreUnavailable:
                self._unsettled.append((reservation_id, num_tokens))
                raise

    def _tightest(self, counts: Sequence[tuple[Bucket, int]]) -> QuotaState:
        bucket, used = min(counts, key=lambda count: count[0].limit - count[1])
        return QuotaState(bucket.limit, max(0, bucket.limit - used), self._until_midnight_s())

    def _day(self) -> int:
        return int(self._clock() // _DAY_S)

    def _until_midnight_s(self) -> float:
        return _DAY_S - self._clock() % _DAY_S
