"""Accounts that somebody else vouches for: a directory or an OpenID provider. Knows neither of them.

We keep an account for each, made at its first login, so that limits, keys and conversations have an owner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import select

from chatsvc.guard.accounts import Accounts, normal_name, view
from chatsvc.guard.changes import Change, OnChange, note_nothing
from chatsvc.guard.roles import Roles, format_names
from chatsvc.store.database import Database, insert_if_missing
from chatsvc.store.tables import Account


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """Whose credentials they were."""

    account_id: str
    name: str


@dataclass(frozen=True, slots=True)
class Vouched:
    """The account that a token of another issuer is for."""

    account_id: str
    expires_at: int


class Directory(Protocol):
    """Where accounts that are not local prove themselves."""

    def verify(self, name: str, password: str) -> LoggedIn | None:
        """The account behind the name when the directory takes the password; None when it does not."""


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

    def take(self, name: str, roles: Sequence[str], source: str) -> LoggedIn | None:
        """The account of that name, with its roles renewed.

        None where it is disabled here, or belongs to another source: a name elsewhere does not open a local account.
        """
        known_as = normal_name(name)
        if known_as is None:
            return None
        fresh = self._accounts.new_row(known_as, "", [role for role in roles if role in self._roles], source)
        values = {column.name: getattr(fresh, column.name) for column in Account.__table__.columns}
        unchanged = self._unchanged(known_as, fresh.roles, source)
        if unchanged is not None:
            return unchanged
        with self._database.session() as session:
            insert_if_missing(session.connection(), Account, **values)
            row = session.scalars(select(Account).where(Account.name == known_as).with_for_update()).one()
            if row.source != source or row.disabled_at is not None:
                return None
            before = view(row).as_dict()
            row.roles = format_names(fresh.roles.split())
            change = Change(None if row.id == fresh.id else before, view(row).as_dict())
            self._on_change(session, f"{source}.account", change)
            return LoggedIn(row.id, row.name)

    def _unchanged(self, name: str, roles: str, source: str) -> LoggedIn | None:
        """The account when there is nothing to write: the usual case, and all that a tool's every request costs."""
        same = (Account.name == name, Account.source == source, Account.roles == format_names(roles.split()))
        with self._database.reading() as session:
            row = session.execute(select(Account.id).where(*same, Account.disabled_at.is_(None))).first()
        return LoggedIn(row.id, name) if row is not None else None
