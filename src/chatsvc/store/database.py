"""Transactions on SQLite (the default) or PostgreSQL (by URL). Knows locking and outages, not what is stored.

Every outage is raised as :class:`StoreUnavailable`, and the next call tries again, so the service recovers without a
restart. For a PostgreSQL server that hangs, see ``store/postgres.py``.

SQLite has a write-ahead log and one writer at a time. Our threads wait for the writer on a lock, because SQLite's busy
handler sleeps and polls, which is slow and unfair with many threads; the busy timeout remains for other processes.
``session()`` commits with ``synchronous=FULL``: a logout that was answered survives a power cut. ``counting()`` commits
with NORMAL, which is not fsynced: only a power cut can lose the last counts, and each request saves two waits for the
disk. ``first()`` and ``counting()`` run with every request and bypass SQLAlchemy; see ``store/statement.py``.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from chatsvc.errors import StoreUnavailable
from chatsvc.store.breaker import Breaker
from chatsvc.store.statement import AnyRow, PlainConnection, Statement

__all__ = ["AnyRow", "Database", "Statement", "insert_if_missing"]

_log = logging.getLogger(__name__)

_OUR_MISTAKES = (IntegrityError, DataError, ProgrammingError)
_OUR_MISTAKES_IN_SQLITE = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError)
_BUSY_TIMEOUT_MS = 5000
_WRITER_TIMEOUT_S = 10.0
_CHECK_TIMEOUT_MS = 1000
_TOUCH_EVERY_S = 10.0
_TELL_EVERY_S = 10.0


class Database:
    """Transactions on one SQLAlchemy engine.

    Args:
        url: ``sqlite:///path`` or ``postgresql+psycopg://…`` (or plain ``postgresql://…``).
        pool_size: connections kept open; under load as many again are opened.
    """

    def __init__(self, url: str, *, pool_size: int = 16) -> None:
        parsed = make_url(url)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        self._breaker = Breaker()
        self.engine = _sqlite_engine(url, pool_size) if self.is_sqlite else _postgres(url, pool_size, self._breaker)
        # BEGIN IMMEDIATE takes the write lock at once; upgrading a reader to a writer could deadlock.
        self._writing = self.engine.execution_options(sqlite_begin="IMMEDIATE")
        self._writer = threading.Lock()
        self._touch_at = 0.0
        self._tell_at = 0.0

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A transaction that may write: committed when the block ends, rolled back when it raises.

        Raises:
            StoreUnavailable: the database is down, read-only, or locked for too long.
        """
        with (
            self._turn_to_write(),
            self._outages(),
            Session(self._writing, expire_on_commit=False) as session,
            session.begin(),
        ):
            session.connection()  # takes the write lock now, not at the first statement
            yield session

    @contextmanager
    def counting(self) -> Iterator[PlainConnection]:
        """As :meth:`session`, for counts, on a plain connection without fsync: a power cut may lose the last ones."""
        with self._turn_to_write(), self._outages(), self._plain() as connection:
            if not isinstance(connection, sqlite3.Connection):
                with connection.begin():
                    yield connection
                return
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("BEGIN IMMEDIATE")
            with connection:  # commits, or rolls back
                yield connection

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A transaction that only reads and never waits for the writer."""
        with self._outages(), Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection of SQLAlchemy Core that only reads."""
        with self._outages(), self.engine.connect() as connection:
            yield connection

    def first(self, statement: Statement, values: Mapping[str, Any]) -> AnyRow | None:
        """The first row of a statement that only reads, or None."""
        with self._outages(), self._plain() as connection:
            return statement.run(connection, values)

    def ping(self) -> None:
        """Ask the database for an answer.

        Raises:
            StoreUnavailable: there is none.
        """
        with self.connection() as connection:
            connection.execute(text("SELECT 1"))

    def check_writable(self) -> None:
        """Check that the database can be written. In SQLite a real write is tried every 10 s, to notice a full disk.

        Raises:
            StoreUnavailable: another program locks the file, the disk is full, or the server is read-only.
        """
        if not self.is_sqlite:
            with self.connection() as connection:
                if connection.scalar(text("SELECT current_setting('transaction_read_only')")) != "off":
                    raise StoreUnavailable
            return
        with self._turn_to_write(), self._outages(), self._plain() as connection:
            assert isinstance(connection, sqlite3.Connection)
            connection.execute(f"PRAGMA busy_timeout={_CHECK_TIMEOUT_MS}")
            try:
                connection.execute("PRAGMA synchronous=NORMAL")
                connection.execute("BEGIN IMMEDIATE")
                with connection:
                    self._touch(connection)
            finally:
                connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")

    def _touch(self, connection: sqlite3.Connection) -> None:
        now = time.monotonic()
        if now >= self._touch_at:
            # user_version is a field of the file's header that we do not use otherwise.
            connection.execute(f"PRAGMA user_version={int(now) % 2**31}")
            self._touch_at = now + _TOUCH_EVERY_S

    def close(self) -> None:
        """Close the pooled connections."""
        self.engine.dispose()

    @contextmanager
    def _outages(self) -> Iterator[None]:
        """Raise failures of the database as StoreUnavailable; errors of our own statements pass unchanged."""
        self._breaker.check()
        try:
            yield
        except (*_OUR_MISTAKES, *_OUR_MISTAKES_IN_SQLITE):
            raise
        except (DBAPIError, PoolTimeout, sqlite3.Error) as error:
            self._tell(error)
            raise StoreUnavailable from error

    def _tell(self, error: Exception) -> None:
        """Log the cause, at most every 10 s: while the database is down, every request fails."""
        now = time.monotonic()
        if now >= self._tell_at:
            self._tell_at = now + _TELL_EVERY_S
            _log.warning("the database failed", exc_info=error)

    @contextmanager
    def _plain(self) -> Iterator[PlainConnection]:
        """A pooled connection outside of a transaction: for SQLite the driver's, else SQLAlchemy's."""
        if not self.is_sqlite:
            with self.engine.connect() as connection:
                yield connection
            return
        pooled = self.engine.raw_connection()
        try:
            assert isinstance(pooled.driver_connection, sqlite3.Connection)
            yield pooled.driver_connection
        finally:
            pooled.close()

    def _turn_to_write(self) -> AbstractContextManager[Any]:
        return _locked(self._writer) if self.is_sqlite else nullcontext()


@contextmanager
def _locked(lock: threading.Lock) -> Iterator[None]:
    if not lock.acquire(timeout=_WRITER_TIMEOUT_S):
        raise StoreUnavailable
    try:
        yield
    finally:
        lock.release()


def _sqlite_engine(url: str, pool_size: int) -> Engine:
    engine = create_engine(
        url,
        hide_parameters=True,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=5,
        connect_args={"timeout": _BUSY_TIMEOUT_MS / 1000, "check_same_thread": False, "isolation_level": None},
    )
    event.listen(engine, "do_connect", _make_private)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _make_private(_dialect: Any, _record: Any, arguments: list[Any], _keywords: Any) -> None:
    """Create the file with mode 0600, because it holds conversations. SQLite gives its log the same mode."""
    path = Path(arguments[0])
    with suppress(OSError):  # it exists, or cannot be created: then connecting fails with the reason
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    for pragma in ("journal_mode=WAL", "foreign_keys=ON", f"busy_timeout={_BUSY_TIMEOUT_MS}"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    begin = connection.get_execution_options().get("sqlite_begin", "DEFERRED")
    if begin != "DEFERRED":
        connection.exec_driver_sql("PRAGMA synchronous=FULL")  # counting() may have set NORMAL on this connection
    connection.exec_driver_sql(f"BEGIN {begin}")


def _postgres(url: str, pool_size: int, breaker: Breaker) -> Engine:
    # Imported here because the extra "postgres" may be missing where SQLite is used.
    from chatsvc.store.postgres import postgres_engine  # noqa: PLC0415

    return postgres_engine(url, pool_size, breaker)


def insert_if_missing(connection: Connection, table: type[Any], **values: Any) -> None:
    """Insert a row unless its key exists: one atomic statement in either database."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    connection.execute(insert(table).values(**values).on_conflict_do_nothing())
