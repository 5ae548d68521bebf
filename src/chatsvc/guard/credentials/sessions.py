"""Sessions: start, refresh and end them. Knows the tables and what tokens hold, not HTTP.

A session is a token family: one login, and all tokens refreshed from it. Refreshing (RFC 9700 4.14.2):

1. A refresh token is spent by compare-and-swap: of any number of parallel attempts, one writes the successor.
2. A second attempt from the same address within 10 s gets the same successor: the first answer was probably lost.
3. Any other second attempt means that the token was copied: the whole session ends, access tokens included.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.orm import Session as StoreSession

from chatsvc.errors import AuthenticationFailed, NotFound
from chatsvc.guard.accounts.lookup import ACCOUNT_COLUMNS, is_named
from chatsvc.guard.address import network_of, parse_address
from chatsvc.guard.credentials.tokens import Claims, TokenPair, Tokens
from chatsvc.guard.outbox import Change, OnChange, note_nothing
from chatsvc.store.database import AnyRow, Database, Statement
from chatsvc.store.tables import Account, RefreshToken, Session

_GRACE_S = 10.0
_PURGED_AT_ONCE = 1000

# Runs with every request that has a token: one lookup by primary key.
_STATE = (
    select(Session.account_id, Session.revoked_at, Session.ends_at, *ACCOUNT_COLUMNS)
    .join(Account, Account.id == Session.account_id)
    .where(Session.sid == bindparam("sid"))
)
_LOOK_UP = Statement(_STATE)

# Runs with every request that has another issuer's token, which belongs to no session.
_ACCOUNT_STATE = select(Account.id.label("account_id"), *ACCOUNT_COLUMNS).where(Account.id == bindparam("account_id"))
_LOOK_UP_ACCOUNT = Statement(_ACCOUNT_STATE)


class RefreshTokenReused(AuthenticationFailed):
    """A spent refresh token was used again, so its session has just been ended. 401, and audited."""

    def __init__(self, sid: str, account_id: str) -> None:
        super().__init__("refresh token reused; session ended")
        self.sid = sid
        self.account_id = account_id


@dataclass(frozen=True, slots=True)
class SessionView:
    """A session as listed. Times are Unix seconds."""

    sid: str
    account: str
    address: str
    created_at: float
    last_used_at: float
    ends_at: float

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Successor:
    sid: str
    account_id: str
    ends_at: float
    jti: str
    issued_at: int
    expires_at: int


class Sessions:
    """Starts, refreshes and ends sessions."""

    def __init__(
        self,
        database: Database,
        tokens: Tokens,
        *,
        absolute_s: int,
        on_change: OnChange = note_nothing,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._on_change = on_change
        self._tokens = tokens
        self._absolute_s = absolute_s
        self._clock = clock

    def start(self, account_id: str, address: str) -> tuple[str, TokenPair]:
        """Start a session; returns its ``sid`` and the first tokens.

        Raises:
            AuthenticationFailed: the account was disabled or removed since its credentials were checked.
        """
        now = self._clock()
        sid = uuid.uuid4().hex
        with self._database.session() as session:
            owner = session.execute(_ACCOUNT_STATE, {"account_id": account_id}).first()
            if owner is None or owner.disabled_at is not None:
                raise AuthenticationFailed("account disabled or removed meanwhile")
            session.execute(
                insert(Session).values(
                    sid=sid,
                    account_id=account_id,
                    address=address,
                    network=network_of(parse_address(address)),
                    created_at=now,
                    last_used_at=now,
                    ends_at=now + self._absolute_s,
                )
            )
            successor = self._write_refresh_token(session, sid, account_id, now + self._absolute_s)
        return sid, self._pair(successor)

    def refresh(self, claims: Claims, address: str) -> TokenPair:
        """Spend a refresh token whose text was checked.

        Raises:
            AuthenticationFailed: the session has ended or the account is disabled.
            RefreshTokenReused: the token was spent before, so the session has been ended now.
        """
        with self._database.session() as session:
            family = self._alive_family(session, claims)
            successor = self._spend(session, claims, family, address) or self._within_grace(
                session, claims, family, address
            )
            if successor is None:  # (3)
                self._end(session, Session.sid == claims.sid, "reuse")
        if successor is None:
            raise RefreshTokenReused(claims.sid, claims.sub)
        return self._pair(successor)

    def state(self, sid: str) -> AnyRow | None:
        """The row of a session with its account's state, or None."""
        return self._database.first(_LOOK_UP, {"sid": sid})

    def account_state(self, account_id: str) -> AnyRow | None:
        """The row of an account, or None."""
        return self._database.first(_LOOK_UP_ACCOUNT, {"account_id": account_id})

    def end(self, sid: str, why: str) -> Change:
        """End a session: all its tokens are refused at once, on every replica.

        Raises:
            NotFound: there is no such session, or it has ended already.
        """
        with self._database.session() as session:
            found = self._views(session, Session.sid == sid)
            if not found:
                raise NotFound("There is no such session, or it has ended.")
            self._end(session, Session.sid == sid, why)
            change = Change(found[0].as_dict(), None)
            self._on_change(session, "admin.session.end", change)
        return change

    def end_all_of(self, account_id: str, why: str) -> int:
        """End every session of an account; returns how many."""
        with self._database.session() as session:
            num_ended = self._end(session, Session.account_id == account_id, why)
            change = Change({"account_id": account_id, "num_sessions": num_ended}, None)
            self._on_change(session, "admin.session.end", change)
        return num_ended

    def list_sessions(self, account_name: str | None = None) -> list[SessionView]:
        """Up to 1000 sessions that have not ended, the oldest first: all, or one account's."""
        with self._database.reading() as session:
            return self._views(session, is_named(account_name) if account_name else Session.sid != "")

    def sid_of(self, token_id: str) -> str:
        """The session that a token with this ``jti`` would belong to; it may not exist."""
        with self._database.reading() as session:
            of_refresh_token = session.scalar(select(RefreshToken.sid).where(RefreshToken.jti == token_id))
        return of_refresh_token or token_id.partition("-")[0]

    def purge(self) -> None:
        """Delete sessions whose tokens have all expired, up to 1000 at once so that no writer waits long."""
        over = self._clock() - self._tokens.options.leeway_s
        some = select(Session.sid).where(Session.ends_at < over).limit(_PURGED_AT_ONCE)
        with self._database.session() as session:
            session.execute(delete(Session).where(Session.sid.in_(some)))

    def _alive_family(self, session: StoreSession, claims: Claims) -> AnyRow:
        family = session.execute(_STATE, {"sid": claims.sid}).first()
        if family is None or family.account_id != claims.sub:
            raise AuthenticationFailed("no such session")
        if family.revoked_at is not None or family.disabled_at is not None or family.ends_at <= self._clock():
            raise AuthenticationFailed("session ended")
        return family

    def _spend(self, session: StoreSession, claims: Claims, family: AnyRow, address: str) -> _Successor | None:
        """(1) The successor if the token was unspent, else None."""
        now = self._clock()
        jti = uuid.uuid4().hex
        unspent = (RefreshToken.jti == claims.jti) & (RefreshToken.sid == claims.sid) & RefreshToken.spent_at.is_(None)
        won = session.scalar(
            update(RefreshToken)
            .where(unspent)
            .values(spent_at=now, spent_from=address, successor=jti)
            .returning(RefreshToken.jti)
        )
        if won is None:
            return None
        session.execute(update(Session).where(Session.sid == claims.sid).values(last_used_at=now))
        return self._write_refresh_token(session, claims.sid, claims.sub, family.ends_at, jti)

    def _within_grace(self, session: StoreSession, claims: Claims, family: AnyRow, address: str) -> _Successor | None:
        """(2) The existing successor if the token was spent from this address at most 10 s ago, else None."""
        spent = session.execute(
            select(RefreshToken.spent_at, RefreshToken.spent_from, RefreshToken.successor).where(
                RefreshToken.jti == claims.jti, RefreshToken.sid == claims.sid
            )
        ).first()
        if spent is None or spent.spent_at is None:
            return None
        # abs(): a time in the future, stored by a clock that was ahead, must not lengthen the grace.
        if spent.spent_from != address or abs(self._clock() - spent.spent_at) > _GRACE_S:
            return None
        row = session.execute(
            select(RefreshToken.issued_at, RefreshToken.expires_at).where(RefreshToken.jti == spent.successor)
        ).one()
        return _Successor(claims.sid, claims.sub, family.ends_at, spent.successor, row.issued_at, row.expires_at)

    def _write_refresh_token(
        self, session: StoreSession, sid: str, account_id: str, ends_at: float, jti: str | None = None
    ) -> _Successor:
        now = int(self._clock())
        expires_at = min(now + self._tokens.options.refresh_idle_s, int(ends_at))
        successor = _Successor(sid, account_id, ends_at, jti or uuid.uuid4().hex, now, max(expires_at, now + 1))
        session.execute(
            insert(RefreshToken).values(
                jti=successor.jti, sid=sid, issued_at=successor.issued_at, expires_at=successor.expires_at
            )
        )
        return successor

    def _pair(self, successor: _Successor) -> TokenPair:
        # Everything is derived from the successor, so that a retry gets the same tokens.
        now = successor.issued_at
        lifetime_s = max(1, min(self._tokens.options.access_lifetime_s, int(successor.ends_at) - now))
        # The jti begins with the sid: access tokens are not stored, but an operator can revoke one by its jti.
        access_jti = f"{successor.sid}-{uuid.uuid5(uuid.UUID(hex=successor.jti), 'access').hex[:16]}"
        access = Claims(successor.account_id, successor.sid, access_jti, now, now + lifetime_s)
        refresh = Claims(successor.account_id, successor.sid, successor.jti, successor.issued_at, successor.expires_at)
        return TokenPair(
            self._tokens.unsigned("access", access), self._tokens.unsigned("refresh", refresh), expires_in=lifetime_s
        )

    def _end(self, session: StoreSession, condition: Any, why: str) -> int:
        alive = condition & Session.revoked_at.is_(None)
        dead = {"revoked_at": self._clock(), "revoked_why": why}
        return len(session.scalars(update(Session).where(alive).values(**dead).returning(Session.sid)).all())

    def _views(self, session: StoreSession, condition: Any) -> list[SessionView]:
        query = (
            select(Session, Account.name)
            .join(Account, Account.id == Session.account_id)
            .where(condition, Session.revoked_at.is_(None), Session.ends_at > self._clock())
            .order_by(Session.created_at)
            .limit(1000)
        )
        return [
            SessionView(row.sid, name, row.address, row.created_at, row.last_used_at, row.ends_at)
            for row, name in session.execute(query)
        ]
