"""Two replicas on a real PostgreSQL and a real Redis: one truth, and an outage that is 503 and heals."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import threading
import time
from contextlib import closing
from dataclasses import replace
from glob import glob
from ipaddress import ip_address
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from flask import Flask
from sqlalchemy import func, inspect, select, text
from sqlalchemy.exc import DataError

from chatsvc.errors import AuthenticationFailed, LimitExceeded, StoreUnavailable
from chatsvc.guard.api_keys import NewKey
from chatsvc.guard.assembly import assemble
from chatsvc.guard.gate import Credentials
from chatsvc.guard.principal import ANY_PRINCIPAL, REFRESH_TOKEN, scope
from chatsvc.guard.quotas import Bucket
from chatsvc.guard.rates import Rates
from chatsvc.guard.room import Room
from chatsvc.store.database import Database
from chatsvc.store.migrate import is_current, migrate, migrate_back
from chatsvc.store.tables import Base, RefreshToken

PASSWORD = "correct horse battery"
POSTGRES_BIN = next(iter(sorted(glob("/usr/lib/postgresql/*/bin"), reverse=True)), None)  # noqa: PTH207


def free_port():
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def nobodys_account():
    """PostgreSQL refuses to run as root."""
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


class Postgres:
    """A server of its own, on a free port of the loopback address."""

    def __init__(self, folder):
        self.folder = folder
        self.port = free_port()
        self._as = nobodys_account() if os.geteuid() == 0 else None
        if self._as:
            os.chown(folder, self._as.pw_uid, self._as.pw_gid)
        self._run(
            "initdb",
            "-D",
            str(folder / "data"),
            "-U",
            "chatsvc",
            "-A",
            "trust",
            "--no-sync",
            "-E",
            "UTF8",
            "--no-locale",
        )

    @property
    def url(self):
        return f"postgresql://chatsvc@127.0.0.1:{self.port}/postgres"

    def start(self):
        options = f"-h 127.0.0.1 -p {self.port} -k {self.folder} -c fsync=off -c max_connections=200"
        self._run(
            "pg_ctl", "start", "-w", "-D", str(self.folder / "data"), "-o", options, "-l", str(self.folder / "log")
        )

    def stop(self):
        self._run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", str(self.folder / "data"))

    def _run(self, program, *arguments):
        identity = {"user": self._as.pw_uid, "group": self._as.pw_gid, "extra_groups": []} if self._as else {}
        subprocess.run(
            [str(Path(POSTGRES_BIN) / program), *arguments],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.folder, **identity,
        )  # fmt: skip


@pytest.fixture(scope="module")
def postgres():
    if POSTGRES_BIN is None or (os.geteuid() == 0 and nobodys_account() is None):
        pytest.skip("PostgreSQL's server is not installed here (Debian: apt-get install postgresql)")
    # Not below pytest's own folder, which belongs to root alone.
    folder = Path(subprocess.run(["mktemp", "-d"], check=True, capture_output=True, text=True).stdout.strip())
    server = Postgres(folder)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder)


@pytest.fixture
def empty(postgres):
    """The server's database without tables."""
    database = Database(postgres.url)
    with database.session() as session:
        session.execute(text("DROP SCHEMA public CASCADE"))
        session.execute(text("CREATE SCHEMA public"))
    yield database
    database.close()


class Replica:
    """One web process's guard."""

    def __init__(self, options, clock):
        self.guard = assemble(options, clock=clock)
        self.gate = self.guard.gate(options, Room(4, 4, 4), lambda *_: None)
        self._app = Flask("replica")
        self.guard.tokens.install(self._app)

    def ask(self, token, requirement=ANY_PRINCIPAL):
        with self._app.app_context():
            return self.gate.authenticate(Credentials((f"Bearer {token}",)), requirement)

    def start_session(self, account_id):
        with self._app.app_context():
            return self.guard.sessions.start(account_id, "127.0.0.1")

    def refresh(self, token):
        with self._app.app_context():
            claims = self.guard.tokens.check(token, "refresh")
            return self.guard.sessions.refresh(claims, "127.0.0.1").refresh_token


@pytest.fixture
def replicas(options, postgres, empty, clock):
    shared = replace(options, store_url=postgres.url)
    pair = Replica(shared, clock), Replica(shared, clock)
    yield pair
    for replica in pair:
        replica.guard.close()


@pytest.fixture
def ada(replicas):
    return replicas[0].guard.accounts.add("ada", PASSWORD, ["user"]).after


def in_parallel(acts):
    errors = []

    def run(act):
        try:
            act()
        except Exception as error:  # noqa: BLE001 - the test reports any
            errors.append(error)

    threads = [threading.Thread(target=run, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_migrations_go_forward_and_back_on_postgresql(empty):
    migrate(empty)
    assert is_current(empty)
    with empty.connection() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    migrate_back(empty, "base")
    assert not set(inspect(empty.engine).get_table_names()) & set(Base.metadata.tables)
    migrate(empty)


def test_replicas_that_start_together_migrate_once(postgres, empty):
    def start():
        replica = Database(postgres.url)
        migrate(replica)
        replica.close()

    in_parallel([start] * 4)
    assert is_current(empty)


def test_our_own_mistakes_are_not_outages(empty):
    with pytest.raises(DataError), empty.session() as session:
        session.execute(text("SELECT 1 / 0"))


def test_logged_out_on_one_is_401_on_the_other(replicas, ada):
    here, there = replicas
    sid, pair = here.start_session(ada["id"])
    assert there.ask(pair.access_token).name == "ada"
    here.guard.sessions.end(sid, "logout")
    for token, requirement in ((pair.access_token, ANY_PRINCIPAL), (pair.refresh_token, REFRESH_TOKEN)):
        with pytest.raises(AuthenticationFailed):
            there.ask(token, requirement)


def test_a_key_revoked_on_one_is_401_on_the_other(replicas, ada):
    here, there = replicas
    key = here.guard.api_keys.create(NewKey("ada", "ci", ["chat"]))[0]
    assert there.ask(key, scope("chat")).key_id
    here.guard.api_keys.rotate(key.split("_")[1], grace_s=0)
    with pytest.raises(AuthenticationFailed):
        there.ask(key)


def test_a_signing_key_rotated_on_one_is_known_on_the_other_at_once(replicas, ada, clock):
    here, there = replicas
    here.guard.rotate_signing_key()
    clock.advance(1)
    _, pair = here.start_session(ada["id"])
    assert there.ask(pair.access_token).name == "ada"


def test_a_hundred_refreshes_on_two_replicas_have_one_successor(replicas, ada):
    _, pair = replicas[0].start_session(ada["id"])
    results = []
    in_parallel(
        [lambda number=number: results.append(replicas[number % 2].refresh(pair.refresh_token)) for number in range(60)]
    )
    assert len(results) == 60
    assert len(set(results)) == 1
    with replicas[0].guard.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(RefreshToken)) == 2


def test_a_quota_holds_over_both_by_one_token(replicas):
    buckets, granted = [Bucket("account:ada", 500), Bucket("key:ci", 400)], []

    def use(number):
        quotas = replicas[number % 2].guard.quotas
        for _ in range(5):
            try:
                reserved = quotas.reserve(buckets, 7 + number % 5)
            except LimitExceeded:
                return
            granted.append(reserved.num_tokens - 1)
            quotas.settle(reserved.id, reserved.num_tokens - 1)

    in_parallel([lambda number=number: use(number) for number in range(32)])
    assert 380 <= sum(granted) <= 400
    assert replicas[0].guard.quotas.state(buckets).remaining == 400 - sum(granted)


def test_failed_logins_count_on_both(replicas, ada):
    here = ip_address("127.0.0.1")
    for number in range(5):
        with pytest.raises(AuthenticationFailed):
            replicas[number % 2].guard.login.verify("ada", "a wrong password", here)
    for replica in replicas:
        with pytest.raises(LimitExceeded):
            replica.guard.login.verify("ada", PASSWORD, here)
        assert replica.guard.login.verify("ada", PASSWORD, ip_address("127.0.0.2"))


def test_postgresql_stopped_is_503_and_comes_back_by_itself(replicas, ada, postgres):
    here, there = replicas
    sid, pair = here.start_session(ada["id"])
    postgres.stop()
    try:
        for replica in replicas:
            for act in (
                lambda replica=replica: replica.ask(pair.access_token),
                lambda replica=replica: replica.start_session(ada["id"]),
                lambda replica=replica: replica.guard.quotas.reserve([Bucket("account:ada", 500)], 1),
            ):
                with pytest.raises(StoreUnavailable):
                    act()
    finally:
        postgres.start()
    assert here.ask(pair.access_token).sid == sid
    assert there.ask(pair.access_token).sid == sid
    there.start_session(ada["id"])


@pytest.fixture
def redis(tmp_path):
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("Redis is not installed here (Debian: apt-get install redis-server)")
    server = Redis(program, tmp_path)
    server.start()
    yield server
    server.stop()


class Redis:
    """A server of its own, on a free port of the loopback address."""

    def __init__(self, program, folder):
        self.port = free_port()
        self._command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
        self._process = None

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self):
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with closing(socket.socket()) as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        pytest.fail("Redis did not start")

    def stop(self):
        self._process.terminate()
        self._process.wait()


def test_requests_a_minute_are_counted_over_both_in_redis(redis):
    replicas, taken = [Rates(redis.url), Rates(redis.url)], []

    def hit(number):
        try:
            replicas[number % 2].hit([("account:ada", 20)])
            taken.append(number)
        except LimitExceeded:
            pass

    in_parallel([lambda number=number: hit(number) for number in range(40)])
    assert len(taken) == 20
    assert replicas[0].state([("account:ada", 20)]).remaining == 0


def test_redis_stopped_is_503_and_comes_back_by_itself(redis):
    rates = Rates(redis.url)
    rates.hit([("account:ada", 20)])
    redis.stop()
    with pytest.raises(StoreUnavailable):
        rates.hit([("account:ada", 20)])
    redis.start()
    rates.hit([("account:ada", 20)])
