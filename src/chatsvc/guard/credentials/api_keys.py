"""API keys for tools: ``csk_<id>_<secret>``. Knows the table, not HTTP.

Only the SHA-256 of a secret is stored; the secret has 256 random bits, so nothing slower is needed. A key never does
more than its account may: its scopes are those it was given and the account still has. The whole key is shown once.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import Session as StoreSession

from chatsvc.errors import AuthenticationFailed, Conflict, InvalidRequest, NotFound
from chatsvc.guard.accounts.changes import Change, OnChange, note_nothing
from chatsvc.guard.accounts.finding import find_named, is_named
from chatsvc.guard.accounts.roles import ALL_SCOPES, Roles, format_names, parse_names
from chatsvc.store.database import AnyRow, Database, Statement
from chatsvc.store.tables import Account, ApiKey

PREFIX = "csk_"
LIMITS = frozenset({"expires_at", "requests_per_minute", "tokens_per_day", "max_concurrent"})
_KEY = re.compile(r"csk_([a-z0-9]{1,32})_([A-Za-z0-9_-]{20,128})")
_MAX_NAME_LENGTH = 128
_NOTE_USE_EVERY_S = 60.0
# The longest that the old secret of a rotated key may work on.
MAX_GRACE_S = 90 * 86_400

_LOOK_UP = Statement(
    select(
        ApiKey.id,
        ApiKey.account_id,
        ApiKey.secret_sha256,
        ApiKey.old_secret_sha256,
        ApiKey.old_secret_until,
        ApiKey.scopes,
        ApiKey.expires_at,
        ApiKey.last_used_at,
        ApiKey.revoked_at,
        ApiKey.requests_per_minute.label("key_requests_per_minute"),
        ApiKey.tokens_per_day.label("key_tokens_per_day"),
        ApiKey.max_concurrent.label("key_max_concurrent"),
        Account.name,
        Account.roles,
        Account.disabled_at,
        Account.requests_per_minute,
        Account.tokens_per_day,
        Account.max_concurrent,
    )
    .join(Account, Account.id == ApiKey.account_id)
    .where(ApiKey.id == bindparam("id"))
)


@dataclass(frozen=True, slots=True)
class KeyView:
    """What may be shown of a key: everything but the secret."""

    id: str
    account: str
    name: str
    scopes: tuple[str, ...]
    created_at: float
    expires_at: float | None
    last_used_at: float | None
    revoked: bool
    requests_per_minute: int | None
    tokens_per_day: int | None
    max_concurrent: int | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "scopes": list(self.scopes)}


@dataclass(frozen=True, slots=True)
class NewKey:
    """What a key is to be."""

    account: str
    name: str
    scopes: Sequence[str]
    expires_at: float | None = None
    requests_per_minute: int | None = None
    tokens_per_day: int | None = None
    max_concurrent: int | None = None


class ApiKeys:
    """Makes, checks, changes, rotates and revokes keys."""

    def __init__(
        self,
        database: Database,
        roles: Roles,
        *,
        on_change: OnChange = note_nothing,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._on_change = on_change
        self._roles = roles
        self._clock = clock

    def create(self, new: NewKey) -> tuple[str, Change]:
        """Make a key; returns its text, which is not to be had again.

        Raises:
            InvalidRequest: the name or a scope cannot be.
            NotFound: there is no such account.
        """
        if not 1 <= len(new.name) <= _MAX_NAME_LENGTH or not new.name.isprintable():
            raise InvalidRequest(f"A key's name has 1 to {_MAX_NAME_LENGTH} printable characters.", param="name")
        secret = secrets.token_urlsafe(32)
        with self._database.session() as session:
            account = find_named(session, new.account)
            if account is None:
                raise NotFound("There is no account of that name.")
            self._check_scopes(new.scopes, account)
            row = ApiKey(
                id=secrets.token_hex(6),
                account_id=account.id,
                name=new.name,
                secret_sha256=_digest(secret),
                scopes=format_names(new.scopes),
                created_at=self._clock(),
                expires_at=new.expires_at,
                requests_per_minute=new.requests_per_minute,
                tokens_per_day=new.tokens_per_day,
                max_concurrent=new.max_concurrent,
            )
            session.add(row)
            session.flush()
            change = Change(None, _view(row, account.name).as_dict())
            self._on_change(session, "admin.key.create", change)
        return f"{PREFIX}{row.id}_{secret}", change

    def check(self, text: str) -> AnyRow:
        """The row behind a good key.

        Raises:
            AuthenticationFailed: for any flaw.
        """
        matched = _KEY.fullmatch(text)
        row = self.state(matched[1]) if matched else None
        if matched is None or row is None:
            raise AuthenticationFailed("no such API key")
        digest = _digest(matched[2])
        is_current = hmac.compare_digest(digest, row.secret_sha256)
        # Further ahead than any grace: it was stored by a clock that was ahead, and must not keep the old secret alive.
        is_in_grace = 0 < (row.old_secret_until or 0) - self._clock() <= MAX_GRACE_S
        is_old = hmac.compare_digest(digest, row.old_secret_sha256 or "") and is_in_grace
        if not is_current and not is_old:
            raise AuthenticationFailed("wrong secret of an API key")
        if not self.is_alive(row):
            raise AuthenticationFailed("API key revoked or expired, or its account disabled")
        self._note_use(row)
        return row

    def state(self, key_id: str) -> AnyRow | None:
        """The row behind a key, or None where there is none."""
        return self._database.first(_LOOK_UP, {"id": key_id})

    def is_alive(self, row: AnyRow) -> bool:
        """Neither revoked nor expired, and the account not disabled."""
        expired = row.expires_at is not None and row.expires_at <= self._clock()
        return row.revoked_at is None and row.disabled_at is None and not expired

    def scopes_of(self, row: AnyRow) -> frozenset[str]:
        """What the key was given and its account still has."""
        return frozenset(parse_names(row.scopes)) & self._roles.scopes_of(parse_names(row.roles))

    def list_keys(self, account: str | None = None) -> list[KeyView]:
        """Every key, or those of one account."""
        query = select(ApiKey, Account.name).join(Account, Account.id == ApiKey.account_id).order_by(ApiKey.created_at)
        if account is not None:
            query = query.where(is_named(account))
        with self._database.reading() as session:
            return [_view(row, name) for row, name in session.execute(query.limit(1000))]

    def set_limits(self, key_id: str, limits: Mapping[str, float | None]) -> Change:
        """Change limits out of ``LIMITS``, at once also for who has the key: what is left out stays, None goes away."""
        assert limits.keys() <= LIMITS, "only limits are changed"

        def change(row: ApiKey) -> None:
            for name, value in limits.items():
                setattr(row, name, value)

        return self._change(key_id, "limits", change)

    def rotate(self, key_id: str, *, grace_s: float) -> tuple[str, Change]:
        """Give a key a new secret; the old one works for ``grace_s`` more."""
        secret = secrets.token_urlsafe(32)

        def change(row: ApiKey) -> None:
            row.old_secret_sha256 = row.secret_sha256
            row.old_secret_until = self._clock() + grace_s
            row.secret_sha256 = _digest(secret)

        return f"{PREFIX}{key_id}_{secret}", self._change(key_id, "rotate", change)

    def revoke(self, key_id: str) -> Change:
        """End a key; streams that run with it end too."""

        def change(row: ApiKey) -> None:
            row.revoked_at = row.revoked_at or self._clock()

        return self._change(key_id, "revoke", change)

    def _change(self, key_id: str, verb: str, act: Callable[[ApiKey], None]) -> Change:
        with self._database.session() as session:
            row, name = self._find(session, key_id)
            before = _view(row, name).as_dict()
            act(row)
            change = Change(before, _view(row, name).as_dict())
            self._on_change(session, f"admin.key.{verb}", change)
        return change

    @staticmethod
    def _find(session: StoreSession, key_id: str) -> tuple[ApiKey, str]:
        query = select(ApiKey, Account.name).join(Account, Account.id == ApiKey.account_id).where(ApiKey.id == key_id)
        found = session.execute(query.with_for_update(of=ApiKey)).first()
        if found is None:
            raise NotFound("There is no API key of that id.")
        return found[0], found[1]

    def _check_scopes(self, wanted: Sequence[str], account: Account) -> None:
        unknown = sorted(set(wanted) - ALL_SCOPES)
        if unknown or not wanted:
            raise InvalidRequest(f"A key needs scopes out of {', '.join(sorted(ALL_SCOPES))}.", param="scopes")
        beyond = sorted(set(wanted) - self._roles.scopes_of(parse_names(account.roles)))
        if beyond:
            raise Conflict(f"The account itself has no scope {', '.join(beyond)}; give it a role that has.")

    def _note_use(self, row: AnyRow) -> None:
        """Remember when it was last used, to the minute: a write with every request would be too many."""
        now = self._clock()
        if row.last_used_at is None or abs(now - row.last_used_at) >= _NOTE_USE_EVERY_S:
            with self._database.session() as session:
                session.execute(update(ApiKey).where(ApiKey.id == row.id).values(last_used_at=now))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("ascii")).hexdigest()


def _view(row: ApiKey, account: str) -> KeyView:
    return KeyView(
        id=row.id,
        account=account,
        name=row.name,
        scopes=parse_names(row.scopes),
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        revoked=row.revoked_at is not None,
        requests_per_minute=row.requests_per_minute,
        tokens_per_day=row.tokens_per_day,
        max_concurrent=row.max_concurrent,
    )
