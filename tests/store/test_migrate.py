"""Migrations go forward and back, and produce exactly the tables of tables.py."""

from __future__ import annotations

import threading

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, select, text

from chatsvc.store.database import Database
from chatsvc.store.migrate import is_current, migrate, migrate_back
from chatsvc.store.tables import Account, ApiKey, Base, Session


def test_migrations_make_exactly_the_tables_of_the_code(database):
    with database.connection() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_going_back_to_base_removes_every_table_and_forward_makes_them_again(database):
    migrate_back(database, "base")
    assert not set(inspect(database.engine).get_table_names()) & set(Base.metadata.tables)
    assert not is_current(database)
    migrate(database)
    assert set(Base.metadata.tables) <= set(inspect(database.engine).get_table_names())


def test_rows_are_kept_on_the_way_back_and_forward(database):
    make = text(
        "INSERT INTO accounts (id, name, password_hash, roles, created_at, password_changed_at, source)"
        " VALUES ('a', 'ada', '', '', 0, 0, 'local')"
    )
    key = text(
        "INSERT INTO api_keys (id, account_id, name, secret_sha256, scopes, created_at)"
        " VALUES ('k', 'a', 'ci', '', 'chat', 0)"
    )
    with database.session() as session:
        session.execute(make)
        session.execute(key)
    migrate_back(database, "0001")
    assert not is_current(database)
    migrate(database)
    with database.reading() as session:
        row = session.scalars(select(ApiKey)).one()
    assert (row.id, row.account_id, row.max_concurrent) == ("k", "a", None)


def test_accounts_and_sessions_of_earlier_versions_get_their_keys(database):
    migrate_back(database, "0002")
    account = text(
        "INSERT INTO accounts (id, name, password_hash, roles, created_at, password_changed_at, source)"
        " VALUES (:id, :name, '', '', :at, 0, 'ldap')"
    )
    start = text(
        "INSERT INTO sessions (sid, account_id, address, created_at, last_used_at, ends_at)"
        " VALUES (:address, 'a', :address, 0, 0, 0)"
    )
    names = {"a": "Carol", "b": "carol", "c": "ｃａｒｏｌ", "d": "Straße", "e": "dave", "f": "dave\u3164"}
    places = {"127.0.0.1": "127.0.0.1", "2001:db8:1:2:3::4": "2001:db8:1:2::/64", "somewhere": "somewhere"}
    with database.session() as session:
        for at, (account_id, name) in enumerate(names.items()):
            session.execute(account, {"id": account_id, "name": name, "at": at})
        for address in places:
            session.execute(start, {"address": address})
    migrate(database)
    with database.reading() as session:
        keys = {row.id: row.name_key for row in session.scalars(select(Account))}
        assert keys == {"a": "carol", "b": "carol#b", "c": "carol#c", "d": "strasse", "e": "dave", "f": "dave#f"}
        assert {row.address: row.network for row in session.scalars(select(Session))} == places


def test_migrating_twice_changes_nothing(database):
    migrate(database)
    assert is_current(database)


def test_replicas_that_start_together_migrate_once(tmp_path):
    url = f"sqlite:///{tmp_path / 'chatsvc.db'}"
    errors = []

    def start():
        replica = Database(url)
        try:
            migrate(replica)
        except Exception as error:  # noqa: BLE001 - the test reports any
            errors.append(error)
        finally:
            replica.close()

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
