"""Logins: the same outcome for every wrong password, and a throttle that slows guessers but admits the owner."""

from __future__ import annotations

import statistics
import threading
import time
from contextlib import suppress
from ipaddress import ip_address

import pytest
from sqlalchemy import func, select, update

from chatsvc.errors import AuthenticationFailed, Conflict, LimitExceeded, PermissionRefused
from chatsvc.guard.accounts.external import LoggedIn
from chatsvc.guard.accounts.login import LOGIN_REFUSED, Login
from chatsvc.guard.accounts.passwords import PasswordOptions, Passwords
from chatsvc.guard.accounts.throttle import network_of
from chatsvc.store.tables import Account, LoginFailure

PASSWORD = "correct horse battery"
HERE = ip_address("127.0.0.1")
ELSEWHERE = ip_address("203.0.113.9")


def fail(guard, name="ada", address=HERE, times=1):
    for _ in range(times):
        with pytest.raises(AuthenticationFailed) as caught:
            guard.login.verify(name, "a wrong password", address)
        assert caught.value.message == LOGIN_REFUSED


def waits(guard, name="ada", address=HERE, password=PASSWORD):
    with pytest.raises(LimitExceeded) as caught:
        guard.login.verify(name, password, address)
    assert caught.value.code == "login_throttled"
    return caught.value.retry_after_s


def test_the_right_password_logs_in(guard, ada):
    assert guard.login.verify("ada", PASSWORD, HERE) == LoggedIn(ada["id"], "ada")


@pytest.mark.parametrize("name", ["bob", "Ada", "", "ada ", "ada\0", "x" * 1000, "' OR 1=1 --", "\ud800"])
def test_an_unknown_account_and_a_wrong_password_are_one_outcome(guard, ada, name):
    fail(guard, name)
    fail(guard)


def test_a_disabled_account_is_refused_like_a_wrong_password(guard, ada):
    guard.accounts.set_disabled("ada", disabled=True)
    with pytest.raises(AuthenticationFailed) as caught:
        guard.login.verify("ada", PASSWORD, HERE)
    assert caught.value.message == LOGIN_REFUSED


@pytest.mark.parametrize("name", ["ada", "nobody"])
def test_after_five_failures_the_wait_doubles_from_a_second_to_a_quarter_of_an_hour(guard, ada, clock, name):
    fail(guard, name, times=4)
    expected = 1
    for _ in range(12):
        fail(guard, name)
        assert waits(guard, name) == pytest.approx(min(expected, 900), abs=0.01)
        clock.advance(min(expected, 900) + 0.01)
        expected *= 2
    assert guard.login.verify("ada", PASSWORD, ELSEWHERE)


def test_while_it_waits_even_the_right_password_is_refused_and_not_hashed(guard, ada, monkeypatch):
    fail(guard, times=5)
    monkeypatch.setattr(guard.passwords, "matches", lambda *_: pytest.fail("hashed"))
    assert 0 < waits(guard) <= 1


def test_the_owner_comes_in_from_another_address_meanwhile(guard, ada):
    fail(guard, times=5)
    assert guard.login.verify("ada", PASSWORD, ELSEWHERE)
    waits(guard)


def test_a_success_or_an_hour_of_quiet_forgets(guard, ada, clock):
    fail(guard, times=4)
    guard.login.verify("ada", PASSWORD, HERE)
    fail(guard, times=4)
    clock.advance(3601)
    fail(guard, times=4)
    guard.login.verify("ada", PASSWORD, HERE)


@pytest.mark.slow
def test_a_hundred_failures_an_hour_close_an_account_to_new_addresses_but_not_to_its_own(guard, ada, clock):
    guard.sessions.start(ada["id"], str(HERE))
    for number in range(25):
        fail(guard, address=ip_address(f"198.51.100.{number}"), times=4)
    assert waits(guard, address=ELSEWHERE) == pytest.approx(3600, abs=1)
    assert guard.login.verify("ada", PASSWORD, HERE)
    clock.advance(3601)
    fail(guard, address=ELSEWHERE)
    assert guard.login.verify("ada", PASSWORD, ELSEWHERE)


def test_an_ipv6_customer_is_one_address(guard, ada):
    assert network_of(ip_address("2001:db8::1")) == network_of(ip_address("2001:db8::ffff")) == "2001:db8::/64"
    for number in range(5):
        fail(guard, address=ip_address(f"2001:db8::{number}"))
    waits(guard, address=ip_address("2001:db8::99"))
    assert guard.login.verify("ada", PASSWORD, ip_address("2001:db8:0:1::1"))


@pytest.mark.parametrize("name", ["ADA", "Ada", " ada ", "ａｄａ", "aDA\u00a0"])
def test_every_spelling_of_a_name_counts_as_one(guard, ada, name):
    fail(guard, name, times=5)
    waits(guard)
    assert guard.login.verify("ada", PASSWORD, ELSEWHERE)


@pytest.mark.parametrize("name", ["ADA", "ａｄａ"])
def test_every_spelling_of_a_name_is_that_account(guard, ada, name):
    assert guard.login.verify(name, PASSWORD, HERE).account_id == ada["id"]
    with pytest.raises(Conflict):
        guard.accounts.add(name, PASSWORD, ["user"])
    guard.accounts.set_disabled(name, disabled=True)
    with pytest.raises(AuthenticationFailed):
        guard.login.verify("ada", PASSWORD, HERE)


def test_an_owner_with_ipv6_is_not_locked_out_by_the_failures_of_others(guard, ada):
    guard.sessions.start(ada["id"], "2001:db8:1:2:3:4:5:6")
    for number in range(25):
        fail(guard, address=ip_address(f"198.51.100.{number}"), times=4)
    waits(guard, address=ip_address("2001:db8:1:3::1"))
    assert guard.login.verify("ada", PASSWORD, ip_address("2001:db8:1:2:ffff::1"))


@pytest.mark.slow
def test_a_clock_that_was_years_ahead_lengthens_no_wait(guard, ada, clock):
    clock.advance(126_144_000)
    fail(guard, times=5)
    for number in range(19):
        fail(guard, address=ip_address(f"198.51.100.{number}"), times=5)
    waits(guard, address=ELSEWHERE)
    clock.advance(-126_144_000)
    assert guard.login.verify("ada", PASSWORD, HERE)
    assert guard.login.verify("ada", PASSWORD, ELSEWHERE)
    fail(guard, times=5)  # from now on it counts as usual
    assert 0 < waits(guard) <= 1
    for number in range(19):
        fail(guard, address=ip_address(f"198.51.100.{100 + number}"), times=5)
    assert 0 < waits(guard, address=ip_address("203.0.113.77")) <= 3600


@pytest.mark.parametrize("ahead_s", [1, 59, 61, 600, 7200])
def test_no_wait_is_longer_than_its_cap_however_far_the_clock_was_ahead(guard, ada, clock, ahead_s):
    clock.advance(ahead_s)
    fail(guard, times=5)
    clock.advance(-ahead_s)
    clock.advance(900)
    assert guard.login.verify("ada", PASSWORD, HERE)


def test_parallel_guesses_gain_nothing(guard, ada):
    outcomes = []

    def guess():
        try:
            guard.login.verify("ada", "a wrong password", HERE)
        except (AuthenticationFailed, LimitExceeded) as error:
            outcomes.append(type(error))

    threads = [threading.Thread(target=guess) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(AuthenticationFailed) <= 7  # five, one more for each further slot, and one a second
    assert len(outcomes) == 30


def test_names_are_stored_as_keyed_hashes(guard):
    fail(guard, "a password typed into the wrong field")
    with guard.database.reading() as session:
        assert "password" not in "".join(session.scalars(select(LoginFailure.name_hmac)))


def test_old_failures_are_purged_and_an_administrator_may_forget_them(guard, ada, clock):
    fail(guard, times=5)
    guard.throttle.forget("ada")
    guard.login.verify("ada", PASSWORD, HERE)
    fail(guard)
    clock.advance(3601)
    guard.throttle.purge()
    with guard.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(LoginFailure)) == 0


def test_a_hash_made_at_another_cost_is_renewed_at_login(guard, ada):
    dearer = Login(guard.database, Passwords(PasswordOptions(memory_kib=8192, time_cost=2)), guard.throttle)
    dearer.verify("ada", PASSWORD, HERE)
    with guard.database.reading() as session:
        assert ",t=2," in session.scalar(select(Account.password_hash))
    assert guard.login.verify("ada", PASSWORD, HERE)


def test_a_wrong_current_password_is_403_and_throttled_the_same(guard, ada):
    guard.login.verify_current("ada", PASSWORD, HERE)
    for _ in range(5):
        with pytest.raises(PermissionRefused, match="current password"):
            guard.login.verify_current("ada", "a wrong password", HERE)
    waits(guard)
    with pytest.raises(LimitExceeded):
        guard.login.check_throttle("ada", HERE)


class ScriptedDirectory:
    def verify(self, name, password, admit):
        return LoggedIn("from-directory", name) if password == "of the directory" else None


def test_who_is_no_local_account_is_asked_of_the_directory(guard, ada):
    login = Login(guard.database, guard.passwords, guard.throttle, ScriptedDirectory())
    assert login.verify("bob", "of the directory", HERE).account_id == "from-directory"
    assert login.verify("ada", PASSWORD, HERE).account_id == ada["id"]
    for name, password in (
        ("ada", "of the directory"),
        ("bob", "a wrong password"),
        ("no\nname", "of the directory"),
        ("n" * 257, "of the directory"),
    ):
        with pytest.raises(AuthenticationFailed):
            login.verify(name, password, HERE)
    with guard.database.session() as session:
        session.execute(update(Account).values(source="ldap"))
    assert login.verify("ada", "of the directory", ELSEWHERE)
    guard.accounts.set_disabled("ada", disabled=True)
    with pytest.raises(AuthenticationFailed):
        login.verify("ada", "of the directory", ELSEWHERE)


class HangingDirectory:
    def __init__(self):
        self.asked, self.released = threading.Semaphore(0), threading.Event()

    def verify(self, name, password, admit):
        self.asked.release()
        assert self.released.wait(30)


def test_a_directory_that_hangs_does_not_keep_the_local_administrator_out(guard, ada):
    directory = HangingDirectory()
    login = Login(guard.database, guard.passwords, guard.throttle, directory)

    def try_to_log_in(number):
        with suppress(AuthenticationFailed):
            login.verify(f"somebody{number}", PASSWORD, HERE)

    threads = [threading.Thread(target=try_to_log_in, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert directory.asked.acquire(timeout=30)
    assert login.verify("ada", PASSWORD, HERE)
    directory.released.set()
    for thread in threads:
        thread.join()


def test_unknown_account_and_wrong_password_take_the_same_work(guard, ada, monkeypatch):
    """Counts statements and hashes instead of seconds, which depend on the machine's load."""
    hashed = []
    original = guard.passwords.matches
    monkeypatch.setattr(guard.passwords, "matches", lambda *given: hashed.append(1) or original(*given))
    fail(guard, "ada")
    fail(guard, "nobody")
    assert len(hashed) == 2


@pytest.mark.slow
@pytest.mark.slow
def test_unknown_account_and_wrong_password_take_the_same_time(guard, ada, clock):
    seconds = {"ada": [], "nobody": []}
    for _ in range(60):
        for name, taken in seconds.items():
            started_at = time.thread_time()
            fail(guard, name)
            taken.append(time.thread_time() - started_at)
            guard.throttle.forget(name)
    known, unknown = (statistics.median(taken) for taken in seconds.values())
    assert abs(known - unknown) < 0.15 * known
