"""Slows down who guesses passwords, without locking the owner out. Knows nothing about passwords.

1. Per (attempted name, address): 5 failures are free; then a wait of 1 s, doubled by each failure up to 15 min.
   While it waits even the right password is refused, unhashed. An hour without a failure, or a success, forgets.
2. Per attempted name from anywhere: 100 failures an hour. An address from which this account has logged in before is
   exempt, so that a crowd of guessers cannot lock the owner out.

A name is counted in every spelling as one (:func:`chatsvc.guard.accounts.names.name_key`). Whom a directory knows by
several names is counted by what the directory cannot change as well, so that no way to write a name gives more
guesses. Names that do not exist are counted like those that do. Counts are in the database: a restart or another
replica does not forget them. A name is stored as a keyed hash, because people type passwords into the wrong field.

Moments in the database are of a clock that may have been wrong. One that lies in the future was stored by a clock that
has been put right since: no wait follows from it, and the count goes on from now.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable

from sqlalchemy import ColumnElement, Row, delete, select, update
from sqlalchemy.orm import Session as StoreSession

from chatsvc.errors import LimitExceeded
from chatsvc.guard.accounts.finding import is_named
from chatsvc.guard.accounts.names import name_key
from chatsvc.guard.address import place_of
from chatsvc.guard.principal import ClientAddress
from chatsvc.store.database import Database, insert_if_missing
from chatsvc.store.tables import Account, LoginFailure, Session

_FREE_FAILURES = 5
_MAX_WAIT_S = 900
_FORGET_AFTER_S = 3600
_MAX_FAILURES_PER_HOUR = 100
_ANYWHERE = "*"
# How far the clocks of replicas may differ: what is stored less far ahead was stored by one of them.
_SKEW_S = 60

# address, num_failures, first_at, last_at, wait_until
_Failures = Row[tuple[str, int, float, float, float]]


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
        name_hmac, place, now = self._hmac(name), place_of(address), self._clock()
        with self._database.reading() as session:
            rows = {row.address: row for row in self._rows(session, name_hmac, place)}
            wait_s = _wait_s(rows.get(place), now)  # (1)
            anywhere_s = _wait_s(rows.get(_ANYWHERE), now)
            if anywhere_s > wait_s and not self._is_known(session, name, place):
                wait_s = anywhere_s  # (2)
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
    def _rows(session: StoreSession, name_hmac: str, place: str, *, for_update: bool = False) -> list[_Failures]:
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
            .where(_is_account_of(name), Session.place == place)
            .limit(1)
        )
        return session.scalar(query) is not None

    def _hmac(self, name: str) -> str:
        return hmac.new(self._key, name_key(name).encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def _is_account_of(name: str) -> ColumnElement[bool]:
    """The condition of the account that is counted under a name, or under a directory's authority and subject."""
    authority, separator, subject = name.partition("\0")
    if separator:
        return (Account.authority == authority) & (Account.subject == subject)
    return is_named(name)


def _wait_s(row: _Failures | None, now: float) -> float:
    """What is left of a wait, at most its cap; nothing of one that was stored by a clock that was ahead."""
    if row is None:
        return 0.0
    began_at, cap_s = (row.first_at, _FORGET_AFTER_S) if row.address == _ANYWHERE else (row.last_at, _MAX_WAIT_S)
    return 0.0 if began_at > now + _SKEW_S else min(row.wait_until - now, cap_s)


def _next_count(row: _Failures, now: float) -> dict[str, float]:
    if row.address == _ANYWHERE:
        fresh = not -_SKEW_S <= now - row.first_at <= _FORGET_AFTER_S
        first_at = now if fresh else row.first_at
        num_failures = 1 if fresh else row.num_failures + 1
        wait_until = first_at + _FORGET_AFTER_S if num_failures >= _MAX_FAILURES_PER_HOUR else 0.0
        return {"num_failures": num_failures, "first_at": first_at, "last_at": now, "wait_until": wait_until}
    num_failures = 1 if now - row.last_at > _FORGET_AFTER_S else row.num_failures + 1
    # 2 ** 10 is over 15 min already; the exponent is bounded so that the number is, too.
    wait_s = 0.0 if num_failures < _FREE_FAILURES else min(2.0 ** min(num_failures - _FREE_FAILURES, 10), _MAX_WAIT_S)
    return {"num_failures": num_failures, "last_at": now, "wait_until": now + wait_s}
