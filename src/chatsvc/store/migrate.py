"""Brings the database's tables to what this version of the program needs, and back. Knows nothing about their use.

Runs at every start under a lock (an advisory lock in PostgreSQL, the write lock in SQLite), so replicas that start
together migrate once.
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
    """Go forward to ``revision``. Does nothing where the tables are there already."""
    with database.session() as session:
        connection = session.connection()
        _lock(connection, is_sqlite=database.is_sqlite)
        upgrade(_config(connection), revision)


def migrate_back(database: Database, revision: str) -> None:
    """Go back to ``revision``; ``base`` removes every table."""
    with database.session() as session:
        connection = session.connection()
        _lock(connection, is_sqlite=database.is_sqlite)
        downgrade(_config(connection), revision)


def is_current(database: Database) -> bool:
    """Whether the tables are those of this version."""
    with database.connection() as connection:
        context = MigrationContext.configure(connection)
        head = ScriptDirectory.from_config(_config(connection)).get_current_head()
        return context.get_current_revision() == head


def head() -> str:
    """The revision that this version of the program needs."""
    config = Config()
    config.set_main_option("script_location", _SCRIPTS)
    config.set_main_option("path_separator", "os")
    return str(ScriptDirectory.from_config(config).get_current_head())


def _lock(connection: Connection, *, is_sqlite: bool) -> None:
    if not is_sqlite:  # SQLite's BEGIN IMMEDIATE holds the only write lock already
        connection.execute(text("SELECT pg_advisory_xact_lock(:id)"), {"id": _ADVISORY_LOCK})


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", _SCRIPTS)
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
