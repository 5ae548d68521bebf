"""Slows down who guesses passwords, without locking the owner out. Knows nothing about passwords.

1. Per (attempted name, address): 5 failures are free; then a wait of 1 s, doubled by each failure up to 15 min.
   While it waits even the right password is refused, unhashed. An hour without a failure, or a success, forgets.
2. Per attempted name from anywhere: 100 failures an hour. An address from which this account has logged in before is
   exempt, so that a crowd of guessers cannot lock the owner out.

Names that do not exist are counted like those that do. Counts are in the database: a restart or another replica does
not forget them. A name is stored as a keyed hash, because people type passwords into the wrong field.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable
from ipaddress import IPv6Network

from sqlalchemy import Row, delete, select, update
from sqlalchemy.orm import Session as StoreSession

from chatsvc.errors import LimitExceeded
from chatsvc.guard.principal import ClientAddress
from chatsvc.store.database import Database, insert_if_missing
from chatsvc.store.tables import Account, LoginFailure, Session

_FREE_FAILURES = 5
_MAX_WAIT_S = 900
_FORGET_AFTER_S = 3600
_MAX_FAILURES_PER_HOUR = 100
_ANYWHERE = "*"


class LoginThrottle:
    """Counts failures.

    Args:
        database: where the counts are.
        key: of the hash of names.
        clock: Unix seconds.
    """

    def __init__(self, database: Database, key: bytes, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._key = key
        self._clock = clock

    def check(self, name: str, address: ClientAddress) -> None:
        """Refuse while the name has to wait.

        Raises:
            LimitExceeded: with the seconds to wait.
        """
        name_hmac, place = self._hmac(name), place_of(address)
        with self._database.reading() as session:
            rows = {row.address: row for row in self._rows(session, name_hmac, place)}
            wait_until = max(
                (row.wait_until for row in rows.values() if row.address == place),  # (1)
                default=0.0,
            )
            anywhere = rows.get(_ANYWHERE)
            if (
                anywhere is not None
                and anywhere.wait_until > self._clock()
                and not self._is_known(session, name, place)
            ):
                wait_until = max(wait_until, anywhere.wait_until)  # (2)
        wait_s = wait_until - self._clock()
        if wait_s > 0:
            raise LimitExceeded(
                "Too many failed logins; wait for the time in Retry-After.",
                retry_after_s=wait_s,
                code="login_throttled",
            )

    def failed(self, name: str, address: ClientAddress) -> None:
        """Count a failure."""
        now = self._clock()
        name_hmac = self._hmac(name)
        with self._database.session() as session:
            for place in (place_of(address), _ANYWHERE):
                insert_if_missing(
                    session.connection(),
                    LoginFailure,
                    name_hmac=name_hmac,
                    address=place,
                    num_failures=0,
                    first_at=now,
                    last_at=now,
                    wait_until=0,
                )
            for row in self._rows(session, name_hmac, place_of(address), for_update=True):
                session.execute(
                    update(LoginFailure)
                    .where(LoginFailure.name_hmac == name_hmac, LoginFailure.address == row.address)
                    .values(**_next_count(row, now))
                )

    def succeeded(self, name: str, address: ClientAddress) -> None:
        """Forget the failures of this name from this address."""
        name_hmac, place = self._hmac(name), place_of(address)
        with self._database.reading() as session:
            if not any(row.address == place for row in self._rows(session, name_hmac, place)):
                return
        with self._database.session() as session:
            session.execute(
                delete(LoginFailure).where(LoginFailure.name_hmac == name_hmac, LoginFailure.address == place)
            )

    def forget(self, name: str) -> None:
        """Forget the failures of a name from anywhere: an administrator has seen to it."""
        with self._database.session() as session:
            session.execute(delete(LoginFailure).where(LoginFailure.name_hmac == self._hmac(name)))

    def purge(self) -> None:
        """Forget what no longer matters."""
        with self._database.session() as session:
            session.execute(delete(LoginFailure).where(LoginFailure.last_at < self._clock() - _FORGET_AFTER_S))

    @staticmethod
    def _rows(
        session: StoreSession, name_hmac: str, place: str, *, for_update: bool = False
    ) -> list[Row[tuple[str, int, float, float, float]]]:
        query = (
            select(
                LoginFailure.address,
                LoginFailure.num_failures,
                LoginFailure.first_at,
                LoginFailure.last_at,
                LoginFailure.wait_until,
            )
            .where(LoginFailure.name_hmac == name_hmac, LoginFailure.address.in_((place, _ANYWHERE)))
            .order_by(LoginFailure.address)
        )
        return list(session.execute(query.with_for_update() if for_update else query))

    @staticmethod
    def _is_known(session: StoreSession, name: str, place: str) -> bool:
        """Whether this account has a session that began at that address."""
        query = (
            select(Session.sid)
            .join(Account, Account.id == Session.account_id)
            .where(Account.name == name, Session.address == place)
            .limit(1)
        )
        return session.scalar(query) is not None

    def _hmac(self, name: str) -> str:
        return hmac.new(self._key, name.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def place_of(address: ClientAddress) -> str:
    """What counts as one address: an IPv4 address, or the /64 that one IPv6 customer is given."""
    if address.version == 6:
        return str(IPv6Network((address, 64), strict=False))
    return str(address)


def _next_count(row: Row[tuple[str, int, float, float, float]], now: float) -> dict[str, float]:
    if row.address == _ANYWHERE:
        fresh = now - row.first_at > _FORGET_AFTER_S
        first_at = now if fresh else row.first_at
        num_failures = 1 if fresh else row.num_failures + 1
        wait_until = first_at + _FORGET_AFTER_S if num_failures >= _MAX_FAILURES_PER_HOUR else 0.0
        return {"num_failures": num_failures, "first_at": first_at, "last_at": now, "wait_until": wait_until}
    num_failures = 1 if now - row.last_at > _FORGET_AFTER_S else row.num_failures + 1
    # 2 ** 10 is over 15 min already; the exponent is bounded so that the number is, too.
    wait_s = 0.0 if num_failures < _FREE_FAILURES else min(2.0 ** min(num_failures - _FREE_FAILURES, 10), _MAX_WAIT_S)
    return {"num_failures": num_failures, "last_at": now, "wait_until": now + wait_s}
