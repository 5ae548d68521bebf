"""Migrates the database's tables to the revision this version needs, or back. Knows nothing about their use.

Runs at every start under a lock (PostgreSQL: an advisory lock; SQLite: the write lock), so of several replicas that
start together only one migrates.
"""

from __future__ import annotations

from pathlib import Path

from alembic.command import downgrade, upgrade
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from chatsvc.store.database import Database

_SCRIPTS = str(Path(__file__).parent / "migrations").replace("%", "%%")
_ADVISORY_LOCK = 0x63_68_61_74  # "chat"


def migrate(database: Database, revision: str = "head") -> None:
    """Migrate forward to ``revision``; does nothing if the tables are current.

    Raises:
        StoreUnavailable: the database is down.
    """
    with database.session() as session:
        connection = session.connection()
        _lock(connection, is_sqlite=database.is_sqlite)
        upgrade(_config(connection), revision)


def migrate_back(database: Database, revision: str) -> None:
    """Migrate back to ``revision``; ``base`` drops every table."""
    with database.session() as session:
        connection = session.connection()
        _lock(connection, is_sqlite=database.is_sqlite)
        downgrade(_config(connection), revision)


def is_current(database: Database) -> bool:
    """Whether the tables have the revision this version needs."""
    with database.connection() as connection:
        context = MigrationContext.configure(connection)
        return context.get_current_revision() == head()


def head() -> str:
    """The revision this version needs."""
    return str(ScriptDirectory.from_config(_config()).get_current_head())


def _lock(connection: Connection, *, is_sqlite: bool) -> None:
    if not is_sqlite:  # SQLite's BEGIN IMMEDIATE holds the only write lock already
        connection.execute(text("SELECT pg_advisory_xact_lock(:id)"), {"id": _ADVISORY_LOCK})


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", _SCRIPTS)
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
