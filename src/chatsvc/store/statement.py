"""A statement that runs with every request. SQLite's driver gets it directly: a layer above takes longer than SQLite.

It is built like any other with SQLAlchemy's expressions, so that both databases understand it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Connection, Executable
from sqlalchemy.dialects import sqlite
from sqlalchemy.sql.elements import CompilerElement

# A row; its columns are attributes.
AnyRow = Any

PlainConnection = Connection | sqlite3.Connection


class Statement:
    """Compiled once. Its columns and values are text and numbers, which neither database's driver has to convert."""

    def __init__(self, statement: Executable) -> None:
        assert isinstance(statement, CompilerElement)
        self._statement = statement
        self._sqlite_text = str(statement.compile(dialect=sqlite.dialect(paramstyle="named")))

    def run(self, connection: PlainConnection, values: Mapping[str, Any]) -> AnyRow | None:
        """Run it; the first row, or None where there is none."""
        if isinstance(connection, sqlite3.Connection):
            return self._first_of_sqlite(connection, values)
        result = connection.execute(self._statement, values)
        return result.first() if result.returns_rows else None

    def _first_of_sqlite(self, connection: sqlite3.Connection, values: Mapping[str, Any]) -> AnyRow | None:
        cursor = connection.execute(self._sqlite_text, values)
        rows = cursor.fetchall()  # to its end: one that is not over keeps its lock
        if not rows:
            return None
        names = (column[0] for column in cursor.description)
        return SimpleNamespace(**dict(zip(names, rows[0], strict=True)))
