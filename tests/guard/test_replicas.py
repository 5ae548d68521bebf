"""Two replicas on a real PostgreSQL and a real Redis agree at once; an outage is 503 and ends without a restart."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from ipaddress import ip_address

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from redis import Redis as RedisClient
from sqlalchemy import func, inspect, select, text
from sqlalchemy.exc import DataError

from chatsvc.errors import AuthenticationFailed, Conflict, LimitExceeded, StoreUnavailable
from chatsvc.guard.accounts.external import Person
from chatsvc.guard.assembly import assemble
from chatsvc.guard.credentials.api_keys import NewKey
from chatsvc.guard.gate import Credentials
from chatsvc.guard.limits.queue import Queue
from chatsvc.guard.limits.quotas import Bucket
from chatsvc.guard.limits.rates import Rates
from chatsvc.guard.principal import ANY_PRINCIPAL, REFRESH_TOKEN, scope
from chatsvc.store.database import Database
from chatsvc.store.migrate import is_current, migrate, migrate_back
from chatsvc.store.tables import Base, RefreshToken
from tests.tokens import signed_pair

pytestmark = pytest.mark.slow

PASSWORD = "correct horse battery"


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
        self.gate = self.guard.gate(options, Queue(4, 4, 4), lambda *_: None)

    def ask(self, token, requirement=ANY_PRINCIPAL):
        return self.gate.authenticate(Credentials((f"Bearer {token}",)), requirement)

    def start_session(self, account_id):
        sid, pair = self.guard.sessions.start(account_id, "127.0.0.1")
        return sid, signed_pair(pair)

    def refresh(self, token):
        claims = self.guard.tokens.check(token, "refresh")
        return signed_pair(self.guard.sessions.refresh(claims, "127.0.0.1")).refresh_token


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


def waits(act):
    """Seconds until the act raises StoreUnavailable."""
    started_at = time.monotonic()
    with pytest.raises(StoreUnavailable):
        act()
    return time.monotonic() - started_at


def test_a_postgresql_that_hangs_is_503_in_bounded_time_and_comes_back_by_itself(replicas, ada, postgres):
    here, _ = replicas
    sid, pair = here.start_session(ada["id"])
    with postgres.hanging():
        waited = []
        in_parallel([lambda: waited.append(waits(lambda: here.ask(pair.access_token)))] * 40)
        assert len(waited) == 40
        assert max(waited) < 12  # the time limits of ping, connection and pool together, and some for load
        # The breaker is open now: no other call waits, of whatever kind.
        at_once = sorted(
            waits(act)
            for act in (
                lambda: here.ask(pair.access_token),
                lambda: here.start_session(ada["id"]),
                lambda: here.guard.quotas.reserve([Bucket("account:ada", 500)], 1),
                lambda: here.guard.login.verify("ada", PASSWORD, ip_address("127.0.0.1")),
            )
        )
        assert at_once[2] < 0.5  # all but the one that may have tried again
    assert wait_for(lambda: here.ask(pair.access_token)).sid == sid
    here.start_session(ada["id"])


def test_a_statement_that_is_on_its_way_when_postgresql_hangs_ends_too(replicas, ada, postgres):
    here, _ = replicas

    def hang_inside():
        with here.guard.database.session() as session:
            session.execute(text("SELECT 1"))
            with postgres.hanging():
                session.execute(text("SELECT 1"))

    assert waits(hang_inside) < 20
    assert wait_for(lambda: here.guard.accounts.get("ada")).name == "ada"


def wait_for(act):
    """The act's result, as soon as the store is available again."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return act()
        except StoreUnavailable:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_person_who_logs_in_at_both_at_once_has_one_account(replicas):
    guards = [replica.guard for replica in replicas]
    for number in range(5):
        carol = Person("ldap", "ldap", f"entryUUID:{number}", f"Carol{number}")
        found = []
        in_parallel(
            [
                lambda carol=carol, found=found, guard=guard: found.append(
                    guard.external_accounts.find_or_create(carol, ["user"])
                )
                for guard in guards * 4
            ]
        )
        assert len(set(found)) == 1
    assert guards[0].accounts.count() == 5


def test_people_of_one_name_at_both_at_once_have_an_account_each(replicas):
    people = [Person("oidc", "https://id.example.org", f"sub-{number}", "sam") for number in range(8)]
    guards, found = [replica.guard for replica in replicas], []
    in_parallel(
        [
            lambda person=person, guard=guards[number % 2]: found.append(
                guard.external_accounts.find_or_create(person, [])
            )
            for number, person in enumerate(people)
        ]
    )
    assert len({one.account_id for one in found}) == 8
    assert sum(one.name == "sam" for one in found) == 1
    assert {one.account_id for one in found} == {
        guards[0].external_accounts.find_or_create(person, []).account_id for person in people
    }


def test_an_account_of_an_earlier_version_is_adopted_once(replicas):
    guards = [replica.guard for replica in replicas]
    with guards[0].database.session() as session:
        row = guards[0].accounts.new_row("CAROL", "", ["user"], "ldap")
        session.add(row)
    people = [Person("ldap", "ldap", f"entryUUID:{number}", "carol") for number in range(4)]
    found = []
    in_parallel(
        [
            lambda person=person: found.append(guards[0].external_accounts.find_or_create(person, ["user"]))
            for person in people
        ]
    )
    assert len({one.account_id for one in found}) == 4
    assert sum(one.account_id == row.id for one in found) == 1


def test_every_spelling_of_a_name_is_that_account_on_postgresql_too(replicas, ada):
    one, other = (replica.guard for replica in replicas)
    assert other.login.verify("ＡＤＡ", PASSWORD, ip_address("127.0.0.1")).account_id == ada["id"]
    with pytest.raises(Conflict):
        one.accounts.add("Ada", PASSWORD, [])
    assert one.accounts.list_doubled() == []
    for name in ("\0", "ada\0", "\ud800", "a" * 5000, "a\u0301" * 200):
        with pytest.raises(AuthenticationFailed):
            one.login.verify(name, PASSWORD, ip_address("127.0.0.1"))


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


def test_a_clock_that_was_years_ahead_closes_a_window_in_redis_for_a_minute_at_most(redis, monkeypatch):
    rates, now = Rates(redis.url), time.time()
    monkeypatch.setattr(time, "time", lambda: now + 126_144_000)
    for _ in range(3):
        rates.hit([("account:ada", 3)])
    monkeypatch.setattr(time, "time", lambda: now)
    with pytest.raises(LimitExceeded) as caught:
        rates.hit([("account:ada", 3)])
    assert 0 < caught.value.retry_after_s <= 60
    with RedisClient.from_url(redis.url) as client:
        assert all(0 < client.ttl(key) <= 60 for key in client.scan_iter())


def test_redis_stopped_is_503_and_comes_back_by_itself(redis):
    rates = Rates(redis.url)
    rates.hit([("account:ada", 20)])
    redis.stop()
    with pytest.raises(StoreUnavailable):
        rates.hit([("account:ada", 20)])
    redis.start()
    rates.hit([("account:ada", 20)])


def test_a_redis_that_hangs_is_503_in_bounded_time_and_comes_back_by_itself(redis):
    rates = Rates(redis.url)
    rates.hit([("account:ada", 20)])
    with redis.hanging():
        waited = []
        in_parallel([lambda: waited.append(waits(lambda: rates.hit([("account:ada", 20)])))] * 40)
        assert len(waited) == 40
        assert max(waited) < 8
        assert sorted(waits(lambda: rates.state([("account:ada", 20)])) for _ in range(4))[2] < 0.5
    assert wait_for(lambda: rates.hit([("account:ada", 2)])).limit == 2


def test_a_redis_that_answers_with_a_refusal_is_there(redis):
    rates = Rates(redis.url)
    with redis.hanging():
        waits(lambda: rates.hit([("account:ada", 1)]))
    while True:
        try:
            rates.hit([("account:ada", 1)])
        except StoreUnavailable:
            time.sleep(0.05)
        except LimitExceeded:
            break
    assert rates.state([("account:ada", 1)]).remaining == 0
