"""Login throttle: slows down password guessing without locking the owner out. Knows nothing about passwords.

1. Per (attempted name, network): the fifth failure causes a wait of 1 s, each further one twice the last, up to 15 min.
   During a wait even the right password is refused, without hashing. A success, or an hour without a failure, resets
   the count.
2. Per attempted name from anywhere: 100 failures an hour. Networks from which the account has a session are exempt, so
   many guessers together cannot lock the owner out.

A network is an IPv4 address or an IPv6 /64. All spellings of a name share one count
(:func:`chatsvc.guard.accounts.names.name_key`). A person of a directory is also counted by the directory's unchanging
id, so writing a name in another way gives no more guesses. Names without an account are counted as well. Counts are in
the database, so they survive a restart and hold for all replicas. Names are stored as HMACs, because people sometimes
type a password into the name field.

Stored times come from a clock that may have been wrong. A time in the future was stored by a clock that has been set
back since: it causes no wait, and counting continues from now.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable

from sqlalchemy import ColumnElement, Row, delete, select, update
from sqlalchemy.orm import Session as StoreSession

from chatsvc.errors import LimitExceeded
from chatsvc.guard.accounts.lookup import is_named
from chatsvc.guard.accounts.names import name_key
from chatsvc.guard.address import network_of
from chatsvc.guard.principal import ClientAddress
from chatsvc.store.database import Database, insert_if_missing
from chatsvc.store.tables import Account, LoginFailure, Session

_FREE_FAILURES = 5
_MAX_WAIT_S = 900
_FORGET_AFTER_S = 3600
_MAX_FAILURES_PER_HOUR = 100
_ANYWHERE = "*"
# How far the clocks of replicas may differ: a stored time that is less far ahead counts as correct.
_SKEW_S = 60

# network, num_failures, first_at, last_at, wait_until
_Failures = Row[tuple[str, int, float, float, float]]


class LoginThrottle:
    """Counts failed logins.

    Args:
        database: holds the counts.
        key: the HMAC key for names.
        clock: Unix seconds.
    """

    def __init__(self, database: Database, key: bytes, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._key = key
        self._clock = clock

    def check(self, name: str, address: ClientAddress) -> None:
        """Refuse a login during a wait.

        Raises:
            LimitExceeded: ``retry_after_s`` is the rest of the wait.
        """
        name_hmac, network, now = self._hmac(name), network_of(address), self._clock()
        with self._database.reading() as session:
            rows = {row.address: row for row in self._rows(session, name_hmac, network)}
            wait_s = _wait_s(rows.get(network), now)  # (1)
            anywhere_s = _wait_s(rows.get(_ANYWHERE), now)
            if anywhere_s > wait_s and not self._is_known(session, name, network):
                wait_s = anywhere_s  # (2)
        if wait_s > 0:
            raise LimitExceeded(
                "Too many failed logins; wait for the time in Retry-After.",
                retry_after_s=wait_s,
                code="login_throttled",
            )

    def failed(self, name: str, address: ClientAddress) -> None:
        """Count a failed login."""
        now = self._clock()
        name_hmac = self._hmac(name)
        with self._database.session() as session:
            for network in (network_of(address), _ANYWHERE):
                insert_if_missing(
                    session.connection(),
                    LoginFailure,
                    name_hmac=name_hmac,
                    address=network,
                    num_failures=0,
                    first_at=now,
                    last_at=now,
                    wait_until=0,
                )
            for row in self._rows(session, name_hmac, network_of(address), for_update=True):
                session.execute(
                    update(LoginFailure)
                    .where(LoginFailure.name_hmac == name_hmac, LoginFailure.address == row.address)
                    .values(**_next_count(row, now))
                )

    def succeeded(self, name: str, address: ClientAddress) -> None:
        """Reset the count of this name from this address's network."""
        name_hmac, network = self._hmac(name), network_of(address)
        with self._database.reading() as session:
            if not any(row.address == network for row in self._rows(session, name_hmac, network)):
                return
        with self._database.session() as session:
            session.execute(
                delete(LoginFailure).where(LoginFailure.name_hmac == name_hmac, LoginFailure.address == network)
            )

    def forget(self, name: str) -> None:
        """Reset all counts of a name, after an administrator has set a new password."""
        with self._database.session() as session:
            session.execute(delete(LoginFailure).where(LoginFailure.name_hmac == self._hmac(name)))

    def purge(self) -> None:
        """Delete counts without a failure in the last hour."""
        with self._database.session() as session:
            session.execute(delete(LoginFailure).where(LoginFailure.last_at < self._clock() - _FORGET_AFTER_S))

    @staticmethod
    def _rows(session: StoreSession, name_hmac: str, network: str, *, for_update: bool = False) -> list[_Failures]:
        query = (
            select(
                LoginFailure.address,
                LoginFailure.num_failures,
                LoginFailure.first_at,
                LoginFailure.last_at,
                LoginFailure.wait_until,
            )
            .where(LoginFailure.name_hmac == name_hmac, LoginFailure.address.in_((network, _ANYWHERE)))
            .order_by(LoginFailure.address)
        )
        return list(session.execute(query.with_for_update() if for_update else query))

    @staticmethod
    def _is_known(session: StoreSession, name: str, network: str) -> bool:
        """Whether the account has a session that began in that network."""
        query = (
            select(Session.sid)
            .join(Account, Account.id == Session.account_id)
            .where(_is_account_of(name), Session.network == network)
            .limit(1)
        )
        return session.scalar(query) is not None

    def _hmac(self, name: str) -> str:
        return hmac.new(self._key, name_key(name).encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def _is_account_of(name: str) -> ColumnElement[bool]:
    """The SQL condition for the account counted under ``name``: a name, or a :attr:`Person.key` of a directory."""
    authority, separator, subject = name.partition("\0")
    if separator:
        return (Account.authority == authority) & (Account.subject == subject)
    return is_named(name)


def _wait_s(row: _Failures | None, now: float) -> float:
    """Seconds left of a wait, at most its cap; 0 if it was stored by a clock that was ahead."""
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
    # 2 ** 10 s is more than 15 min already; a larger exponent would only make a huge number.
    wait_s = 0.0 if num_failures < _FREE_FAILURES else min(2.0 ** min(num_failures - _FREE_FAILURES, 10), _MAX_WAIT_S)
    return {"num_failures": num_failures, "last_at": now, "wait_until": now + wait_s}
