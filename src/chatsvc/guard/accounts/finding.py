"""Finds accounts by name, in whatever spelling. Knows the table, not what is done with an account."""

from __future__ import annotations

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session as StoreSession

from chatsvc.guard.accounts.names import name_key, normal_name
from chatsvc.store.tables import Account

# Stands behind the key of an account of an earlier version whose name another one has too; no name holds it.
_DOUBLED = "#"


def is_named(name: str) -> ColumnElement[bool]:
    """The condition of an account that a name means."""
    stored = normal_name(name) or ""
    return or_(Account.name == stored, Account.name_key == name_key(stored))


def find_named(session: StoreSession, name: str, *, for_update: bool = False) -> Account | None:
    """The account that a name means; where two differ in spelling alone, the one that is spelled like that."""
    query = select(Account).where(is_named(name)).order_by(Account.name != (normal_name(name) or "")).limit(1)
    return session.scalar(query.with_for_update() if for_update else query)


def doubles_of(session: StoreSession, name: str, *, for_update: bool = True) -> list[Account]:
    """Every account of that name, in whatever spelling: the one that is spelled like that first, then the oldest."""
    key = name_key(name)
    doubled = Account.name_key.startswith(f"{key}{_DOUBLED}", autoescape=True)
    query = (
        select(Account)
        .where(or_(Account.name == name, Account.name_key == key, doubled))
        .order_by(Account.name != name, Account.created_at)
    )
    return list(session.scalars(query.with_for_update() if for_update else query))


def pass_key_on(session: StoreSession, name: str) -> None:
    """Give the key of a removed account to the oldest one that shares its name."""
    key, heirs = name_key(name), doubles_of(session, name)
    if heirs and not any(heir.name_key == key for heir in heirs):
        min(heirs, key=lambda heir: heir.created_at).name_key = key
