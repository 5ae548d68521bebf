"""Sessions (token families): start, refresh, end. Knows the tables and the tokens, not HTTP.

Refreshing (RFC 9700 4.14.2):

1. A refresh token is spent by compare-and-swap: of any number of parallel tries one writes the successor.
2. A try that comes second, from the same address within the grace, gets that same successor: its answer was lost.
3. Any other second try means that somebody has a copy: the whole family is dead, access tokens included.
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
from chatsvc.guard.accounts.changes import Change, OnChange, note_nothing
from chatsvc.guard.accounts.finding import is_named
from chatsvc.guard.address import parse_address, place_of
from chatsvc.guard.credentials.tokens import Claims, TokenPair, Tokens
from chatsvc.store.database import AnyRow, Database, Statement
from chatsvc.store.tables import Account, RefreshToken, Session

_GRACE_S = 10.0
_PURGED_AT_ONCE = 1000

# What every request with a token asks: one indexed lookup, whatever the number of sessions.
_STATE = (
    select(
        Session.account_id,
        Session.revoked_at,
        Session.ends_at,
        Account.name,
        Account.roles,
        Account.disabled_at,
        Account.requests_per_minute,
        Account.tokens_per_day,
        Account.max_concurrent,
    )
    .join(Account, Account.id == Session.account_id)
    .where(Session.sid == bindparam("sid"))
)
_LOOK_UP = Statement(_STATE)

# What a request with another issuer's token asks: there is no session behind it.
_ACCOUNT_STATE = select(
    Account.id.label("account_id"),
    Account.name,
    Account.roles,
    Account.disabled_at,
    Account.requests_per_minute,
    Account.tokens_per_day,
    Account.max_concurrent,
).where(Account.id == bindparam("account_id"))
_LOOK_UP_ACCOUNT = Statement(_ACCOUNT_STATE)


class RefreshTokenReused(AuthenticationFailed):
    """A spent refresh token came again; its family has just been ended. 401 like any other failure, and audited."""

    def __init__(self, sid: str, account_id: str) -> None:
        super().__init__("refresh token reused; family ended")
        self.sid = sid
        self.account_id = account_id


@dataclass(frozen=True, slots=True)
class SessionView:
    """What may be shown of a session."""

    sid: str
    account: str
    address: str
    created_at: float
    last_used_at: float
    ends_at: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
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
        """A new family; returns its ``sid`` and the first tokens.

        Raises:
            AuthenticationFailed: the account was disabled or removed since its password was checked.
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
                    place=place_of(parse_address(address)),
                    created_at=now,
                    last_used_at=now,
                    ends_at=now + self._absolute_s,
                )
            )
            successor = self._write_refresh_token(session, sid, account_id, now + self._absolute_s)
        return sid, self._pair(successor)

    def refresh(self, claims: Claims, address: str) -> TokenPair:
        """Spend a refresh token that passed every check of its own.

        Raises:
            AuthenticationFailed: it or its family is dead.
            RefreshTokenReused: it was spent before, so the family is dead now.
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
        """The row behind a session, or None where there is none."""
        return self._database.first(_LOOK_UP, {"sid": sid})

    def account_state(self, account_id: str) -> AnyRow | None:
        """The row of an account, or None where there is none."""
        return self._database.first(_LOOK_UP_ACCOUNT, {"account_id": account_id})

    def end(self, sid: str, why: str) -> Change:
        """End one session: every token of it is dead at once, on every replica.

        Raises:
            NotFound: there is no such session, or it is over.
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
        """Who is in."""
        with self._database.reading() as session:
            return self._views(session, is_named(account_name) if account_name else Session.sid != "")

    def sid_of(self, token_id: str) -> str:
        """The family that a token of that id would belong to, whether there is one or not."""
        with self._database.reading() as session:
            of_refresh_token = session.scalar(select(RefreshToken.sid).where(RefreshToken.jti == token_id))
        return of_refresh_token or token_id.partition("-")[0]

    def purge(self) -> None:
        """Forget sessions that no token can belong to any more, so many at once that nobody waits for it."""
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
        """(1) Compare-and-swap: only a token not yet spent gets a successor."""
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
        """(2) The same successor for the same address, shortly after."""
        spent = session.execute(
            select(RefreshToken.spent_at, RefreshToken.spent_from, RefreshToken.successor).where(
                RefreshToken.jti == claims.jti, RefreshToken.sid == claims.sid
            )
        ).first()
        if spent is None or spent.spent_at is None:
            return None
        # A moment in the future was stored by a clock that has been put right since: the grace is not lengthened by it.
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
        # All of it follows from the successor, so that a retry gets the very same pair.
        now = successor.issued_at
        lifetime_s = max(1, min(self._tokens.options.access_lifetime_s, int(successor.ends_at) - now))
        # It begins with the session's id: nothing is stored of an access token, and yet it can be revoked by its id.
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
