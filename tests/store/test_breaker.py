"""The breaker: passes while the server answers, refuses at once while it does not, and lets one try again now and then."""

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


def test_who_tries_in_vain_begins_the_pause_again():
    clock = Clock()
    breaker = Breaker(0.5, clock=clock)
    breaker.trip()
    clock.now += 0.5
    breaker.check()
    clock.now += 0.4
    breaker.trip()
    clock.now += 0.4
    refuses(breaker)
