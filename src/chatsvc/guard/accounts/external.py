"""Accounts of people from an external authority: an LDAP directory or an OpenID provider. Knows neither protocol.

Each person gets an account at the first login, so that limits, keys and conversations have an owner. It is found by an
id that the authority never changes (a directory's ``entryUUID``, a provider's ``sub``), never by a name:

1. The account with that authority and subject.
2. Else an account that an earlier version created by name, with the same source and name and no subject: adopt it.
3. Else a new account.

Its name is the authority's name for the person, converted by :func:`chatsvc.guard.accounts.names.mapped_name`. If
another person of the authority has that name, a digest is appended.
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
from chatsvc.guard.accounts.lookup import doubles_of
from chatsvc.guard.accounts.names import mapped_name, name_key, with_digest
from chatsvc.guard.accounts.roles import Roles, format_names
from chatsvc.guard.outbox import Change, OnChange, note_nothing
from chatsvc.store.database import Database, insert_if_missing
from chatsvc.store.tables import Account

_MAX_ID_LENGTH = 255


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """The account behind verified credentials."""

    account_id: str
    name: str


@dataclass(frozen=True, slots=True)
class Person:
    """A person at an authority.

    Attributes:
        source: ``ldap`` or ``oidc``.
        authority: ``ldap``, or the issuer's URL; at most 255 characters.
        subject: the person's unchanging id at the authority; at most 255 characters.
        name: the authority's name for the person; None if it gives none.
    """

    source: str
    authority: str
    subject: str
    name: str | None

    @property
    def key(self) -> str:
        """The person's key in the login throttle."""
        return f"{self.authority}\0{self.subject}"


@dataclass(frozen=True, slots=True)
class BearerAccount:
    """The account of a verified token of another issuer, and the token's expiry in Unix seconds."""

    account_id: str
    expires_at: int


def admit_all(_person: Person) -> None:
    """Accept every person."""


class Directory(Protocol):
    """Checks the passwords of accounts that are not local."""

    def verify(self, name: str, password: str, admit: Callable[[Person], None] = admit_all) -> LoggedIn | None:
        """The account of that name and password, or None.

        ``admit`` is called with the person found, before the password is tried; an error it raises ends the login.

        Raises:
            AuthenticationFailed: the password is right, but the account must not be used.
            IdentityUnavailable: the directory cannot be reached.
        """


class TrustedIssuer(Protocol):
    """Another issuer whose bearer tokens are accepted."""

    def check_bearer(self, token: str) -> BearerAccount:
        """The account of a valid token.

        Raises:
            AuthenticationFailed: for any flaw.
            IdentityUnavailable: the issuer's keys cannot be fetched.
        """


class ExternalAccounts:
    """Finds or creates the account of a person."""

    def __init__(
        self, database: Database, accounts: Accounts, roles: Roles, *, on_change: OnChange = note_nothing
    ) -> None:
        self._database = database
        self._accounts = accounts
        self._roles = roles
        self._on_change = on_change

    def find_or_create(self, person: Person, roles: Sequence[str]) -> LoggedIn:
        """The account of a person, with roles and name updated.

        Raises:
            AuthenticationFailed: the account is disabled, its name belongs to another account, or there is no usable
                name. The reason goes to the log only.
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
        """The account if nothing has to be written: the usual case, with a single query for a tool's request."""
        query = select(Account).where(_is_of(person), Account.roles == roles, Account.disabled_at.is_(None))
        with self._database.reading() as session:
            row = session.scalar(query)
            if row is None or _better_name(session, row, person, for_update=False) is not None:
                return None
            return LoggedIn(row.id, row.name)

    def _found(self, session: StoreSession, person: Person) -> tuple[Account, dict[str, object] | None]:
        """The account's row, locked, and its state before; that is None if it was just created."""
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
            if row is not None:  # None: another account has the name
                return row
        raise AuthenticationFailed(f"the names {' and '.join(names)} belong to other accounts")


def bounded(text: str) -> str:
    """An identifier as stored: itself, or its SHA-256 if it is longer than the column."""
    if len(text) <= _MAX_ID_LENGTH:
        return text
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _is_of(person: Person) -> ColumnElement[bool]:
    return and_(Account.authority == person.authority, Account.subject == person.subject)


def _possible_names(person: Person) -> list[str]:
    """The name a person's account should have, and the alternative if that is taken."""
    name = mapped_name(person.name) if person.name is not None else None
    return [] if name is None else [name, with_digest(name, person.key)]


def _check_namesakes(person: Person, name: str, namesakes: Sequence[Account]) -> None:
    """Refuse if another source, or a disabled account of this source, already has the name."""
    for row in namesakes:
        if row.source != person.source:
            raise AuthenticationFailed(f"the name {name} belongs to an account of another source ({row.source})")
        if row.disabled_at is not None:
            raise AuthenticationFailed(f"the account {row.name}, which has the same name, is disabled")


def _better_name(session: StoreSession, row: Account, person: Person, *, for_update: bool) -> str | None:
    """The authority's name for the person, if it differs from the account's and is free; else None."""
    names = _possible_names(person)
    if not names or row.name in names:
        return None
    is_free = all(namesake.id == row.id for namesake in doubles_of(session, names[0], for_update=for_update))
    return names[0] if is_free else None


def _follow_name(session: StoreSession, row: Account, person: Person) -> None:
    name = _better_name(session, row, person, for_update=True)
    if name is not None:
        with suppress(IntegrityError), session.begin_nested():  # taken meanwhile: the next login tries again
            row.name, row.name_key = name, name_key(name)
