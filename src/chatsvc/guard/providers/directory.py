"""Accounts that somebody else vouches for: a directory or an OpenID provider. Knows neither of them.

We keep an account for each person, made at the first login, so that limits, keys and conversations have an owner. It is
found by what its authority cannot change (a directory's ``entryUUID``, a provider's ``sub``), never by a name:

1. The account of that authority and subject.
2. Else one of an earlier version, which knew names only: of the same source and name, and nobody's yet. It is adopted.
3. Else a new one.

Its name is the authority's spelling, as :func:`chatsvc.guard.accounts.names.mapped_name` writes it. Where another
person of that authority has the name already, it gets a digest behind it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import ColumnElement, and_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session as StoreSession

from chatsvc.errors import AuthenticationFailed
from chatsvc.guard.accounts.accounts import Accounts, view
from chatsvc.guard.accounts.changes import Change, OnChange, note_nothing
from chatsvc.guard.accounts.finding import doubles_of
from chatsvc.guard.accounts.names import mapped_name, name_key, with_digest
from chatsvc.guard.accounts.roles import Roles, format_names
from chatsvc.store.database import Database, insert_if_missing
from chatsvc.store.tables import Account

_MAX_ID_LENGTH = 255


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """Whose credentials they were."""

    account_id: str
    name: str


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody at an authority.

    Attributes:
        source: ``ldap`` or ``oidc``.
        authority: who vouches: ``ldap``, or the issuer's URL. At most 255 characters, like ``subject``.
        subject: what the authority cannot change, unique there.
        name: the authority's spelling of the name; None where it gives none.
    """

    source: str
    authority: str
    subject: str
    name: str | None

    @property
    def key(self) -> str:
        """The person as one text, for counting."""
        return f"{self.authority}\0{self.subject}"


@dataclass(frozen=True, slots=True)
class Vouched:
    """The account that a token of another issuer is for."""

    account_id: str
    expires_at: int


def admit_all(_person: Person) -> None:
    """Refuses nobody."""


class Directory(Protocol):
    """Where accounts that are not local prove themselves."""

    def verify(self, name: str, password: str, admit: Callable[[Person], None] = admit_all) -> LoggedIn | None:
        """The account behind the name when the directory takes the password; None when it does not.

        ``admit`` is told who the name means before the password is tried; what it raises ends the login.

        Raises:
            AuthenticationFailed: the password is right, and the account may not be used.
        """


class TrustedIssuer(Protocol):
    """Somebody else whose tokens for tools are taken."""

    def check_bearer(self, token: str) -> Vouched:
        """The account a good token is for.

        Raises:
            AuthenticationFailed: for any flaw.
        """


class VouchedAccounts:
    """Finds or makes the account of somebody who was vouched for."""

    def __init__(
        self, database: Database, accounts: Accounts, roles: Roles, *, on_change: OnChange = note_nothing
    ) -> None:
        self._database = database
        self._accounts = accounts
        self._roles = roles
        self._on_change = on_change

    def take(self, person: Person, roles: Sequence[str]) -> LoggedIn:
        """The account of a person, with its roles and its name renewed.

        Raises:
            AuthenticationFailed: it is disabled, the name belongs to somebody else, or there is no name to call it by;
                the reason is for the log.
        """
        known_roles = format_names([role for role in roles if role in self._roles])
        unchanged = self._unchanged(person, known_roles)
        if unchanged is not None:
            return unchanged
        with self._database.session() as session:
            row, before = self._found(session, person)
            if row.disabled_at is not None:
                raise AuthenticationFailed(f"the account {row.name} is disabled")
            _follow_name(session, row, person)
            row.roles = known_roles
            after = view(row).as_dict()
            if before != after:
                self._on_change(session, f"{person.source}.account", Change(before, after))
            return LoggedIn(row.id, row.name)

    def _unchanged(self, person: Person, roles: str) -> LoggedIn | None:
        """The account when there is nothing to write: the usual case, and all that a tool's every request costs."""
        query = select(Account).where(_is_of(person), Account.roles == roles, Account.disabled_at.is_(None))
        with self._database.reading() as session:
            row = session.scalar(query)
            if row is None or _better_name(session, row, person, for_update=False) is not None:
                return None
            return LoggedIn(row.id, row.name)

    def _found(self, session: StoreSession, person: Person) -> tuple[Account, dict[str, object] | None]:
        """The account's row, locked, and what it was before; None for one that has just been made."""
        row = session.scalar(select(Account).where(_is_of(person)).with_for_update())
        if row is not None:
            return row, view(row).as_dict()
        names = _possible_names(person)
        if not names:
            raise AuthenticationFailed(
                "no name was given that an account could have: look at oidc.name_claim or ldap.user_filter"
            )
        namesakes = doubles_of(session, names[0])
        _check_namesakes(person, names[0], namesakes)
        unclaimed = next((row for row in namesakes if row.subject is None), None)
        if unclaimed is None:
            return self._made(session, person, names), None
        before = view(unclaimed).as_dict()
        unclaimed.authority, unclaimed.subject = person.authority, person.subject
        return unclaimed, before

    def _made(self, session: StoreSession, person: Person, names: Sequence[str]) -> Account:
        for name in names:
            fresh = self._accounts.new_row(name, "", [], person.source)
            fresh.authority, fresh.subject = person.authority, person.subject
            values = {column.name: getattr(fresh, column.name) for column in Account.__table__.columns}
            insert_if_missing(session.connection(), Account, **values)
            row = session.scalar(select(Account).where(_is_of(person)).with_for_update())
            if row is not None:  # None: somebody else has the name
                return row
        raise AuthenticationFailed(f"the names {' and '.join(names)} belong to other accounts")


def bounded(text: str) -> str:
    """An identifier as it is stored: one that is too long for its column is its SHA-256."""
    if len(text) <= _MAX_ID_LENGTH:
        return text
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _is_of(person: Person) -> ColumnElement[bool]:
    return and_(Account.authority == person.authority, Account.subject == person.subject)


def _possible_names(person: Person) -> list[str]:
    """The name that a person's account should have, and the one it gets where that is taken."""
    name = mapped_name(person.name) if person.name is not None else None
    return [] if name is None else [name, with_digest(name, person.key)]


def _check_namesakes(person: Person, name: str, namesakes: Sequence[Account]) -> None:
    """A name elsewhere opens no account of another source, and a new entry of the same name none that was disabled."""
    for row in namesakes:
        if row.source != person.source:
            raise AuthenticationFailed(f"the name {name} belongs to an account of another source ({row.source})")
        if row.disabled_at is not None:
            raise AuthenticationFailed(f"the account {row.name}, which has the same name, is disabled")


def _better_name(session: StoreSession, row: Account, person: Person, *, for_update: bool) -> str | None:
    """The authority's spelling where it is another one than the account's, and free."""
    names = _possible_names(person)
    if not names or row.name in names:
        return None
    is_free = all(namesake.id == row.id for namesake in doubles_of(session, names[0], for_update=for_update))
    return names[0] if is_free else None


def _follow_name(session: StoreSession, row: Account, person: Person) -> None:
    name = _better_name(session, row, person, for_update=True)
    if name is not None:
        with suppress(IntegrityError), session.begin_nested():  # taken at this very moment: the next login sees it
            row.name, row.name_key = name, name_key(name)
