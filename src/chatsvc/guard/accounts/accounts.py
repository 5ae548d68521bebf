"""Accounts with their roles, limits and passwords. Knows nothing about tokens or HTTP.

Every change returns the account before and after, for the audit log.
"""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session as StoreSession

from chatsvc.errors import Conflict, InvalidRequest, NotFound
from chatsvc.guard.accounts.lookup import find_named, pass_key_on
from chatsvc.guard.accounts.names import name_key, normal_name
from chatsvc.guard.accounts.passwords import Passwords, check_password_rules
from chatsvc.guard.accounts.roles import Roles, format_names, parse_names
from chatsvc.guard.outbox import Change, OnChange, note_nothing
from chatsvc.store.database import Database
from chatsvc.store.tables import Account, Session


@dataclass(frozen=True, slots=True)
class AccountView:
    """An account without its password hash."""

    id: str
    name: str
    roles: tuple[str, ...]
    created_at: float
    disabled: bool
    source: str
    requests_per_minute: int | None
    tokens_per_day: int | None
    max_concurrent: int | None

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "roles": list(self.roles)}


@dataclass(frozen=True, slots=True)
class AccountUpdate:
    """Changes of an account; None leaves a value as it is."""

    roles: Sequence[str] | None = None
    disabled: bool | None = None
    password: str | None = None


class Accounts:
    """Reads and changes accounts."""

    def __init__(
        self,
        database: Database,
        passwords: Passwords,
        roles: Roles,
        *,
        on_change: OnChange = note_nothing,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._on_change = on_change
        self._passwords = passwords
        self._roles = roles
        self._clock = clock

    def add(self, name: str, password: str, roles: Sequence[str]) -> Change:
        """Create a local account.

        Raises:
            InvalidRequest: the name, the password or a role is not allowed.
            Conflict: the name is taken, perhaps in another spelling.
            Overloaded: too many passwords are being hashed.
        """
        wanted = self._checked_name(name)
        self._check_roles(roles)
        check_password_rules(password, "password")
        with self._passwords.slot():
            password_hash = self._passwords.hash(password)
        row = self.new_row(wanted, password_hash, roles)
        try:
            with self._database.session() as session:
                session.add(row)
                session.flush()
                change = Change(None, view(row).as_dict())
                self._on_change(session, "admin.account.create", change)
        except IntegrityError:
            raise Conflict(
                f"An account named {wanted} exists; names that differ only in case or width are the same."
            ) from None
        return change

    def new_row(self, name: str, password_hash: str, roles: Sequence[str], source: str = "local") -> Account:
        """A new row, not yet in the database."""
        now = self._clock()
        return Account(
            id=uuid.uuid4().hex,
            name=name,
            password_hash=password_hash,
            roles=format_names(roles),
            created_at=now,
            password_changed_at=now,
            source=source,
            name_key=name_key(name),
        )

    def list_doubled(self) -> list[list[AccountView]]:
        """Groups of accounts whose names differ in case or width alone, each with the oldest account first.

        Only earlier versions created such accounts.
        """
        groups: defaultdict[str, list[AccountView]] = defaultdict(list)
        with self._database.reading() as session:
            for row in session.scalars(select(Account).order_by(Account.created_at, Account.id)):
                groups[name_key(row.name)].append(view(row))
        return [group for _, group in sorted(groups.items()) if len(group) > 1]

    def list_accounts(self, *, after: str = "", max_accounts: int = 1000) -> list[AccountView]:
        """Accounts sorted by name, starting behind ``after``."""
        query = select(Account).where(Account.name > after).order_by(Account.name).limit(max_accounts)
        with self._database.reading() as session:
            return [view(row) for row in session.scalars(query)]

    def count(self) -> int:
        """Number of accounts."""
        with self._database.reading() as session:
            return session.scalar(select(func.count()).select_from(Account)) or 0

    def get(self, name: str) -> AccountView:
        """The account of that name, in any spelling.

        Raises:
            NotFound: there is none.
        """
        with self._database.reading() as session:
            return view(_find(session, name))

    def list_with_own_limits(self) -> list[AccountView]:
        """Accounts with limits of their own, sorted by name."""
        own = or_(
            Account.requests_per_minute.is_not(None),
            Account.tokens_per_day.is_not(None),
            Account.max_concurrent.is_not(None),
        )
        with self._database.reading() as session:
            return [view(row) for row in session.scalars(select(Account).where(own).order_by(Account.name))]

    def set_password(self, name: str, password: str, *, but_sid: str | None = None) -> Change:
        """Set a new password and end all sessions of the account, except ``but_sid``.

        Raises:
            InvalidRequest: the password breaks a rule.
            NotFound: there is no such account.
            Conflict: a directory keeps the account's password.
        """
        return self._change(name, "password", self._password_setter(password, but_sid))

    def set_disabled(self, name: str, *, disabled: bool) -> Change:
        """Disable an account, which ends its sessions and suspends its keys at once; or enable it again."""

        def act(session: StoreSession, row: Account) -> None:
            self._set_disabled(session, row, disabled=disabled)

        return self._change(name, "disable" if disabled else "enable", act)

    def set_roles(self, name: str, roles: Sequence[str]) -> Change:
        """Replace the roles. Tokens and keys in use have the new scopes at once."""
        self._check_roles(roles)

        def act(_session: StoreSession, row: Account) -> None:
            row.roles = format_names(roles)

        return self._change(name, "roles", act)

    def set_limits(self, name: str, limits: dict[str, int | None]) -> Change:
        """Set the account's own limits; None returns to its roles' or the default."""

        def act(_session: StoreSession, row: Account) -> None:
            for key, value in limits.items():
                setattr(row, key, value)

        return self._change(name, "limits", act)

    def change(self, name: str, wanted: AccountUpdate) -> Change:
        """Make several changes in one transaction."""
        self._check_roles(wanted.roles or ())
        set_password = self._password_setter(wanted.password) if wanted.password is not None else None

        def act(session: StoreSession, row: Account) -> None:
            if wanted.roles is not None:
                row.roles = format_names(wanted.roles)
            if set_password is not None:
                set_password(session, row)
            if wanted.disabled is not None:
                self._set_disabled(session, row, disabled=wanted.disabled)

        return self._change(name, "change", act)

    def remove(self, name: str) -> Change:
        """Remove an account with its sessions, keys and conversations."""
        with self._database.session() as session:
            row = _find(session, name, for_update=True)
            change = Change(view(row).as_dict(), None)
            session.delete(row)
            session.flush()
            pass_key_on(session, row.name)
            self._on_change(session, "admin.account.remove", change)
        return change

    def _change(self, name: str, verb: str, act: Callable[[StoreSession, Account], None]) -> Change:
        with self._database.session() as session:
            row = _find(session, name, for_update=True)
            before = view(row).as_dict()
            act(session, row)
            change = Change(before, view(row).as_dict())
            self._on_change(session, f"admin.account.{verb}", change)
        return change

    def _password_setter(self, password: str, but_sid: str | None = None) -> Callable[[StoreSession, Account], None]:
        """Hash the password before the transaction begins: hashing takes long and the transaction holds a lock."""
        check_password_rules(password, "password")
        with self._passwords.slot():
            password_hash = self._passwords.hash(password)

        def act(session: StoreSession, row: Account) -> None:
            if row.source != "local":
                raise Conflict("The directory keeps this account's password; change it there.")
            row.password_hash = password_hash
            row.password_changed_at = self._clock()
            self._end_sessions(session, row, "password", but_sid)

        return act

    def _set_disabled(self, session: StoreSession, row: Account, *, disabled: bool) -> None:
        row.disabled_at = self._clock() if disabled else None
        if disabled:
            self._end_sessions(session, row, "disabled")

    def _end_sessions(self, session: StoreSession, row: Account, why: str, but_sid: str | None = None) -> None:
        alive = (Session.account_id == row.id) & Session.revoked_at.is_(None) & (Session.sid != (but_sid or ""))
        session.execute(update(Session).where(alive).values(revoked_at=self._clock(), revoked_why=why))

    def _check_roles(self, roles: Sequence[str]) -> None:
        for role in roles:
            if role not in self._roles:
                raise InvalidRequest(
                    f"There is no such role; there are {', '.join(self._roles.names())}.", param="roles"
                )

    @staticmethod
    def _checked_name(name: str) -> str:
        normal = normal_name(name)
        if normal is None:
            raise InvalidRequest("A name has 1 to 64 letters, digits or any of . _ @ + -", param="name")
        return normal


def view(row: Account) -> AccountView:
    """A row without its password hash."""
    return AccountView(
        id=row.id,
        name=row.name,
        roles=parse_names(row.roles),
        created_at=row.created_at,
        disabled=row.disabled_at is not None,
        source=row.source,
        requests_per_minute=row.requests_per_minute,
        tokens_per_day=row.tokens_per_day,
        max_concurrent=row.max_concurrent,
    )


def _find(session: StoreSession, name: str, *, for_update: bool = False) -> Account:
    row = find_named(session, name, for_update=for_update)
    if row is None:
        raise NotFound("There is no account of that name.")
    return row
