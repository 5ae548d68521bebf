"""Statements that run with every request. In SQLite they bypass SQLAlchemy, whose overhead exceeds SQLite's own time.

They are written as SQLAlchemy expressions, so both databases understand them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Connection, Executable
from sqlalchemy.dialects import sqlite
from sqlalchemy.sql.elements import CompilerElement

# A row with its columns as attributes.
AnyRow = Any

PlainConnection = Connection | sqlite3.Connection


class Statement:
    """A statement, compiled once. Its columns and values must be text and numbers: nothing here converts types."""

    def __init__(self, statement: Executable) -> None:
        assert isinstance(statement, CompilerElement)
        self._statement = statement
        self._sqlite_text = str(statement.compile(dialect=sqlite.dialect(paramstyle="named")))

    def run(self, connection: PlainConnection, values: Mapping[str, Any]) -> AnyRow | None:
        """Run it; the first row, or None."""
        if isinstance(connection, sqlite3.Connection):
            return self._first_of_sqlite(connection, values)
        result = connection.execute(self._statement, values)
        return result.first() if result.returns_rows else None

    def _first_of_sqlite(self, connection: sqlite3.Connection, values: Mapping[str, Any]) -> AnyRow | None:
        cursor = connection.execute(self._sqlite_text, values)
        rows = cursor.fetchall()  # all of them: an unfinished cursor keeps its read lock
        if not rows:
            return None
        names = (column[0] for column in cursor.description)
        return SimpleNamespace(**dict(zip(names, rows[0], strict=True)))
