"""argon2id with the configured cost, a bounded number at a time; rules for new passwords."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from chatsvc.errors import InvalidRequest, Overloaded
from chatsvc.guard.accounts.passwords import PasswordOptions, Passwords, check_password_rules

QUICK = PasswordOptions(memory_kib=8192, time_cost=1)


def test_the_default_cost_is_that_of_the_design():
    assert Passwords().hash("a password of some length").startswith("$argon2id$v=19$m=19456,t=3,p=1$")


def test_only_the_right_password_matches():
    passwords = Passwords(QUICK)
    stored = passwords.hash("correct horse battery")
    assert passwords.matches("correct horse battery", stored)
    assert not passwords.matches("correct horse batterz", stored)
    assert not passwords.matches("correct horse battery ", stored)


@pytest.mark.parametrize("stored", [None, "", "not a hash", "$argon2id$broken"])
def test_without_a_valid_hash_nothing_matches(stored):
    passwords = Passwords(QUICK)
    assert not passwords.matches("dummy for unknown accounts", stored)


def test_a_hash_made_at_another_cost_is_outdated():
    stored = Passwords(QUICK).hash("correct horse battery")
    assert not Passwords(QUICK).is_outdated(stored)
    assert Passwords(PasswordOptions(memory_kib=8192, time_cost=2)).is_outdated(stored)


def test_at_most_two_hash_at_once_and_who_waits_too_long_is_refused():
    passwords = Passwords(PasswordOptions(memory_kib=8192, time_cost=1, max_wait_s=0.05))
    with passwords.slot(), passwords.slot(), pytest.raises(Overloaded), passwords.slot():
        pytest.fail("a third one")
    with passwords.slot():
        pass


def test_who_finds_too_many_waiting_is_refused_at_once():
    passwords = Passwords(PasswordOptions(memory_kib=8192, time_cost=1, max_parallel=1, max_waiting=1, max_wait_s=30))
    waits = threading.Event()

    def wait_for_a_slot():
        waits.set()
        with passwords.slot():
            pass

    with passwords.slot():
        waiting = threading.Thread(target=wait_for_a_slot)
        waiting.start()
        waits.wait()
        while passwords._slots._admitted.acquire(blocking=False):  # until the other thread waits
            passwords._slots._admitted.release()
        with pytest.raises(Overloaded), passwords.slot():
            pytest.fail("the other thread never waited")
    waiting.join()


@pytest.mark.parametrize("password", ["x" * 15, "x" * 128, "密码" * 10, "with spaces at both ends "])
def test_fifteen_to_128_characters_are_taken_as_sent(password):
    check_password_rules(password)


@pytest.mark.parametrize("password", ["", "x" * 14, "x" * 129, "with a NUL inside\0", "lone surrogate \ud800 inside"])
def test_others_are_refused(password):
    with pytest.raises(InvalidRequest) as caught:
        check_password_rules(password)
    assert caught.value.param == "new"


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.slow
def test_fifty_parallel_hashes_of_the_real_cost_do_not_keep_their_memory():
    passwords = Passwords(PasswordOptions(max_wait_s=300))  # on a busy machine the last ones wait for long
    before = resident_bytes()
    held = threading.Barrier(50)

    def hash_one():
        with passwords.slot():
            passwords.hash("correct horse battery")
        held.wait()  # keep all threads alive: a new thread would reuse the arena of one that ended

    threads = [threading.Thread(target=hash_one) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert resident_bytes() - before < 100_000_000
