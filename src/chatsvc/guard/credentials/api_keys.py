"""API keys for tools: ``csk_<id>_<secret>``. Knows the table, not HTTP.

Only the SHA-256 of the secret is stored; with 256 random bits it needs no slower hash. A key may do no more than its
account: its scopes are those it was created with that the account still has. The key is shown once, when it is created.
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
from chatsvc.guard.accounts.lookup import ACCOUNT_COLUMNS, find_named, is_named
from chatsvc.guard.accounts.roles import Roles, format_names, parse_names
from chatsvc.guard.outbox import Change, OnChange, note_nothing
from chatsvc.guard.principal import ALL_SCOPES
from chatsvc.store.database import AnyRow, Database, Statement
from chatsvc.store.tables import Account, ApiKey

PREFIX = "csk_"
LIMITS = frozenset({"expires_at", "requests_per_minute", "tokens_per_day", "max_concurrent"})
_KEY = re.compile(r"csk_([a-z0-9]{1,32})_([A-Za-z0-9_-]{20,128})")
_MAX_NAME_LENGTH = 128
_NOTE_USE_EVERY_S = 60.0
# Longest grace period of a rotated key's old secret.
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
        *ACCOUNT_COLUMNS,
    )
    .join(Account, Account.id == ApiKey.account_id)
    .where(ApiKey.id == bindparam("id"))
)


@dataclass(frozen=True, slots=True)
class KeyView:
    """A key without its secret. Times are Unix seconds; a limit of None: only the account's applies."""

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
        """As JSON."""
        return {**asdict(self), "scopes": list(self.scopes)}


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key to create; see :class:`KeyView`."""

    account: str
    name: str
    scopes: Sequence[str]
    expires_at: float | None = None
    requests_per_minute: int | None = None
    tokens_per_day: int | None = None
    max_concurrent: int | None = None


class ApiKeys:
    """Creates, checks, changes, rotates and revokes keys."""

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
        """Create a key; returns its text, which is shown only now.

        Raises:
            InvalidRequest: the name or a scope is not allowed.
            NotFound: there is no such account.
            Conflict: the account itself lacks a scope.
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
        """The row of a valid key; notes its use.

        Raises:
            AuthenticationFailed: the key is malformed, unknown, expired or revoked, or its account is disabled.
        """
        matched = _KEY.fullmatch(text)
        row = self.state(matched[1]) if matched else None
        if matched is None or row is None:
            raise AuthenticationFailed("no such API key")
        digest = _digest(matched[2])
        is_current = hmac.compare_digest(digest, row.secret_sha256)
        # Further ahead than the longest grace: stored by a clock that was ahead. It must not keep the old secret valid.
        is_in_grace = 0 < (row.old_secret_until or 0) - self._clock() <= MAX_GRACE_S
        is_old = hmac.compare_digest(digest, row.old_secret_sha256 or "") and is_in_grace
        if not is_current and not is_old:
            raise AuthenticationFailed("wrong secret of an API key")
        if not self.is_alive(row):
            raise AuthenticationFailed("API key revoked or expired, or its account disabled")
        self._note_use(row)
        return row

    def state(self, key_id: str) -> AnyRow | None:
        """The row of a key with its account's state, or None."""
        return self._database.first(_LOOK_UP, {"id": key_id})

    def is_alive(self, row: AnyRow) -> bool:
        """Whether the key is neither revoked nor expired, and its account not disabled."""
        expired = row.expires_at is not None and row.expires_at <= self._clock()
        return row.revoked_at is None and row.disabled_at is None and not expired

    def scopes_of(self, row: AnyRow) -> frozenset[str]:
        """The key's scopes that its account still has."""
        return frozenset(parse_names(row.scopes)) & self._roles.scopes_of(parse_names(row.roles))

    def list_keys(self, account: str | None = None) -> list[KeyView]:
        """Up to 1000 keys, the oldest first: all, or one account's."""
        query = select(ApiKey, Account.name).join(Account, Account.id == ApiKey.account_id).order_by(ApiKey.created_at)
        if account is not None:
            query = query.where(is_named(account))
        with self._database.reading() as session:
            return [_view(row, name) for row, name in session.execute(query.limit(1000))]

    def set_limits(self, key_id: str, limits: Mapping[str, float | None]) -> Change:
        """Set or, with None, remove limits named in :data:`LIMITS`; the others stay. Applies from the next request on.

        Raises:
            NotFound: there is no such key.
        """
        assert limits.keys() <= LIMITS, "only limits are changed"

        def change(row: ApiKey) -> None:
            for name, value in limits.items():
                setattr(row, name, value)

        return self._change(key_id, "limits", change)

    def rotate(self, key_id: str, *, grace_s: float) -> tuple[str, Change]:
        """Replace the secret; the old one stays valid for ``grace_s`` seconds. Returns the new text.

        Raises:
            NotFound: there is no such key.
        """
        secret = secrets.token_urlsafe(32)

        def change(row: ApiKey) -> None:
            row.old_secret_sha256 = row.secret_sha256
            row.old_secret_until = self._clock() + grace_s
            row.secret_sha256 = _digest(secret)

        return f"{PREFIX}{key_id}_{secret}", self._change(key_id, "rotate", change)

    def revoke(self, key_id: str) -> Change:
        """Revoke a key; running streams that use it end too.

        Raises:
            NotFound: there is no such key.
        """

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
        """Store when the key was last used, at most once a minute to save writes."""
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
