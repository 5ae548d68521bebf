"""Requests a minute, in memory; test_replicas.py has the tests with a real Redis."""

from __future__ import annotations

import threading
import time

import pytest

from chatsvc.errors import LimitExceeded, StoreUnavailable
from chatsvc.guard.limits.rates import Rates, _Memory


def test_so_many_are_taken_and_no_more():
    rates = Rates()
    for left in (2, 1, 0):
        assert rates.hit([("account:ada", 3)]).remaining == left
    with pytest.raises(LimitExceeded) as caught:
        rates.hit([("account:ada", 3)])
    assert 0 < caught.value.retry_after_s <= 60
    assert rates.hit([("account:bob", 3)]).remaining == 2


def test_a_clock_that_is_put_right_changes_no_window_in_memory(monkeypatch):
    rates = Rates()
    monkeypatch.setattr(time, "time", lambda: 2e9 + 126_144_000)
    for _ in range(3):
        rates.hit([("account:ada", 3)])
    monkeypatch.setattr(time, "time", lambda: 2e9)
    with pytest.raises(LimitExceeded) as caught:
        rates.hit([("account:ada", 3)])
    assert 0 < caught.value.retry_after_s <= 60
    assert 0 < rates.state([("account:ada", 3)]).reset_s <= 60


def test_the_window_moves_on(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    rates = Rates()
    rates.hit([("account:ada", 2)])
    now[0] += 40
    rates.hit([("account:ada", 2)])
    now[0] += 19
    with pytest.raises(LimitExceeded) as caught:
        rates.hit([("account:ada", 2)])
    assert caught.value.retry_after_s == pytest.approx(1)
    now[0] += 2
    assert rates.hit([("account:ada", 2)]).remaining == 0


def test_the_tightest_limit_is_reported():
    state = Rates().hit([("key:ci", 2), ("account:ada", 100)])
    assert (state.limit, state.remaining) == (2, 1)


def test_looking_does_not_count():
    rates = Rates()
    assert rates.state([("account:ada", 3)]).remaining == 3
    assert rates.state([("account:ada", 3)]).remaining == 3


def test_a_redis_that_is_not_there_is_an_outage():
    rates = Rates("redis://127.0.0.1:1/0")
    with pytest.raises(StoreUnavailable):
        rates.hit([("account:ada", 3)])
    with pytest.raises(StoreUnavailable):
        rates.state([("account:ada", 3)])


def test_counting_starts_no_thread():
    rates = Rates()
    before = threading.active_count()
    for number in range(50):
        rates.hit([(f"account:{number}", 3)])
        assert threading.active_count() <= before


def test_requests_of_long_ago_are_forgotten_and_those_of_now_are_not():
    memory = _Memory()
    for number in range(20):
        assert memory.acquire_entry(f"gone {number}", 5, 1)
    assert memory.acquire_entry("mixed", 5, 1)
    assert memory.acquire_entry("mixed", 5, 60)
    time.sleep(1.1)
    memory.timer.sweep()
    assert [(key, len(entries)) for key, entries in memory.events.items()] == [("mixed", 1)]
    assert "gone 1" not in memory.locks
