"""Transactions commit or roll back; an outage is StoreUnavailable and ends without a restart."""

from __future__ import annotations

import sqlite3
import threading

import pytest
from sqlalchemy import bindparam, func, insert, select, text
from sqlalchemy.exc import IntegrityError

from chatsvc.errors import StoreUnavailable
from chatsvc.store import database as database_module
from chatsvc.store.database import Database, Statement
from chatsvc.store.migrate import migrate
from chatsvc.store.tables import Account, Usage


def an_account(name: str) -> Account:
    return Account(id=name, name=name, password_hash="", roles="", created_at=0, password_changed_at=0)


ADD = Statement(insert(Usage.__table__))
COUNT = Statement(select(Usage.num_tokens).where(Usage.bucket == bindparam("name")))


def test_a_session_commits_at_its_end(database):
    with database.session() as session:
        session.add(an_account("ada"))
    with database.reading() as session:
        assert session.scalar(select(Account.name)) == "ada"


def test_a_session_that_raises_leaves_nothing(database):
    def add_then_fail():
        with database.session() as session:
            session.add(an_account("ada"))
            session.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        add_then_fail()
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(Account)) == 0


def test_the_file_belongs_to_one_account_of_the_machine(tmp_path, database):
    with database.session() as session:
        session.add(an_account("ada"))
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("chatsvc.db*")} == {0o600}


def test_two_accounts_of_one_name_are_our_mistake_not_an_outage(database):
    with pytest.raises(IntegrityError), database.session() as session:
        session.add_all([an_account("ada"), Account(**{**vars_of(an_account("ada")), "id": "other"})])


def vars_of(row):
    return {key: value for key, value in vars(row).items() if not key.startswith("_")}


def test_only_counts_do_not_wait_for_the_disk(database):
    def waits():
        with database.session() as session:
            return session.scalar(text("PRAGMA synchronous"))

    before = waits()
    with database.counting() as connection:
        (counting,) = connection.execute("PRAGMA synchronous").fetchone()
    assert (before, counting, waits()) == (2, 1, 2)  # FULL, NORMAL, and FULL on the connection that was NORMAL


def test_a_count_that_raises_leaves_nothing(database):
    def count_then_fail():
        with database.counting() as connection:
            ADD.run(connection, {"bucket": "b", "day": 1, "num_tokens": 5})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        count_then_fail()
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(Usage)) == 0


def test_a_statement_finds_its_row_or_nothing(database):
    with database.counting() as connection:
        ADD.run(connection, {"bucket": "b", "day": 1, "num_tokens": 5})
    assert database.first(COUNT, {"name": "b"}).num_tokens == 5
    assert database.first(COUNT, {"name": "other"}) is None


def test_a_statement_leaves_no_transaction_open(tmp_path, database):
    with database.counting() as connection:
        ADD.run(connection, {"bucket": "b", "day": 1, "num_tokens": 5})
        assert connection.in_transaction
    database.first(COUNT, {"name": "b"})
    with database.engine.raw_connection().driver_connection as connection:
        assert not connection.in_transaction
    with sqlite3.connect(tmp_path / "chatsvc.db", timeout=0) as other:
        assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0  # fails while in use


def test_a_statement_of_a_database_that_cannot_be_opened_is_unavailable_and_heals(tmp_path):
    folder = tmp_path / "later"
    database = Database(f"sqlite:///{folder / 'chatsvc.db'}")
    with pytest.raises(StoreUnavailable):
        database.first(COUNT, {"name": "b"})
    with pytest.raises(StoreUnavailable), database.counting():
        pytest.fail("it cannot be opened")
    folder.mkdir()
    migrate(database)
    assert database.first(COUNT, {"name": "b"}) is None
    database.close()


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg"])
def test_a_postgresql_that_is_not_there_is_unavailable(scheme):
    database = Database(f"{scheme}://nobody@127.0.0.1:1/nothing")
    with pytest.raises(StoreUnavailable), database.session():
        pytest.fail("there is no server")
    with pytest.raises(StoreUnavailable):
        database.first(COUNT, {"name": "b"})
    database.close()


def test_foreign_keys_hold(database):
    with pytest.raises(IntegrityError), database.session() as session:
        session.execute(
            text("INSERT INTO conversations VALUES ('c', 'nobody', 'title', 0, 0)"),
        )


def test_many_threads_write_without_losing_an_update(database):
    with database.session() as session:
        session.add(Usage(bucket="b", day=1, num_tokens=0))

    def add():
        for _ in range(10):
            with database.session() as session:
                session.execute(text("UPDATE usage SET num_tokens = num_tokens + 1"))

    threads = [threading.Thread(target=add) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.reading() as session:
        assert session.scalar(select(Usage.num_tokens)) == 160


def test_a_database_that_cannot_be_opened_is_unavailable_and_heals(tmp_path):
    folder = tmp_path / "later"
    database = Database(f"sqlite:///{folder / 'chatsvc.db'}")
    with pytest.raises(StoreUnavailable), database.reading() as session:
        session.execute(text("SELECT 1"))
    folder.mkdir()
    with database.reading() as session:
        assert session.scalar(text("SELECT 1")) == 1
    database.close()


def test_a_file_that_is_no_database_is_unavailable(tmp_path):
    (tmp_path / "chatsvc.db").write_bytes(b"not a database, not at all" * 100)
    database = Database(f"sqlite:///{tmp_path / 'chatsvc.db'}")
    with pytest.raises(StoreUnavailable), database.session() as session:
        session.execute(text("SELECT 1"))
    database.close()


def test_another_process_that_holds_the_write_lock_for_too_long_is_an_outage(tmp_path, database, monkeypatch):
    monkeypatch.setattr(database_module, "_BUSY_TIMEOUT_MS", 50)
    hasty = Database(f"sqlite:///{tmp_path / 'chatsvc.db'}")
    other = sqlite3.connect(tmp_path / "chatsvc.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable), hasty.session():
        pytest.fail("the lock is held elsewhere")
    with pytest.raises(StoreUnavailable), hasty.counting():
        pytest.fail("the lock is held elsewhere")
    with hasty.reading() as session:
        assert session.scalar(select(func.count()).select_from(Account)) == 0
    other.execute("ROLLBACK")
    other.close()
    with hasty.session() as session:
        session.add(an_account("ada"))
    hasty.close()


def test_a_thread_that_waits_too_long_for_its_turn_to_write_gives_up(database, monkeypatch):
    monkeypatch.setattr(database_module, "_WRITER_TIMEOUT_S", 0.05)
    database._writer.acquire()
    try:
        with pytest.raises(StoreUnavailable), database.session():
            pytest.fail("the lock is held elsewhere")
    finally:
        database._writer.release()
