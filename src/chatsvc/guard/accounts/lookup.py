"""Looks accounts up by name, in any spelling. Knows the table, not what callers do with an account."""

from __future__ import annotations

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session as StoreSession

from chatsvc.guard.accounts.names import name_key, normal_name
from chatsvc.store.tables import Account

# Accounts of earlier versions may share a name. All but one then have "#" and their id appended to their name_key.
_DOUBLED = "#"

# What a request's authentication reads of an account.
ACCOUNT_COLUMNS = (
    Account.name,
    Account.roles,
    Account.disabled_at,
    Account.requests_per_minute,
    Account.tokens_per_day,
    Account.max_concurrent,
)


def is_named(name: str) -> ColumnElement[bool]:
    """The SQL condition that an account has this name, in any spelling."""
    stored = normal_name(name) or ""
    return or_(Account.name == stored, Account.name_key == name_key(stored))


def find_named(session: StoreSession, name: str, *, for_update: bool = False) -> Account | None:
    """The account of that name, or None; of several that differ in spelling alone, the one spelled exactly so."""
    query = select(Account).where(is_named(name)).order_by(Account.name != (normal_name(name) or "")).limit(1)
    return session.scalar(query.with_for_update() if for_update else query)


def doubles_of(session: StoreSession, name: str, *, for_update: bool = True) -> list[Account]:
    """All accounts of that name, in any spelling: the one spelled exactly so first, then the oldest."""
    key = name_key(name)
    doubled = Account.name_key.startswith(f"{key}{_DOUBLED}", autoescape=True)
    query = (
        select(Account)
        .where(or_(Account.name == name, Account.name_key == key, doubled))
        .order_by(Account.name != name, Account.created_at)
    )
    return list(session.scalars(query.with_for_update() if for_update else query))


def pass_key_on(session: StoreSession, name: str) -> None:
    """After an account was removed, give its name_key to the oldest account that shares the name."""
    key, heirs = name_key(name), doubles_of(session, name)
    if heirs and not any(heir.name_key == key for heir in heirs):
        min(heirs, key=lambda heir: heir.created_at).name_key = key
