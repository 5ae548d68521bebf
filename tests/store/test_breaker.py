"""The breaker: closed while the server answers; open, it refuses at once and lets one caller at a time try again."""

from __future__ import annotations

import pytest

from chatsvc.errors import StoreUnavailable
from chatsvc.store.breaker import Breaker


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def refuses(breaker):
    with pytest.raises(StoreUnavailable):
        breaker.check()


def test_it_passes_everybody_until_it_is_tripped():
    breaker = Breaker(0.5, clock=Clock())
    breaker.check()
    breaker.close()
    breaker.check()
    breaker.trip()
    refuses(breaker)


def test_one_in_every_pause_may_try_and_the_first_answer_closes_it():
    clock = Clock()
    breaker = Breaker(0.5, clock=clock)
    breaker.trip()
    for _ in range(3):
        clock.now += 0.5
        breaker.check()
        refuses(breaker)
    breaker.close()
    breaker.check()
    breaker.check()


def test_a_failed_attempt_restarts_the_pause():
    clock = Clock()
    breaker = Breaker(0.5, clock=clock)
    breaker.trip()
    clock.now += 0.5
    breaker.check()
    clock.now += 0.4
    breaker.trip()
    clock.now += 0.4
    refuses(breaker)
