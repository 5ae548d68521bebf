"""Failures in a row are a problem until a chat succeeds, or until the last failure is 30 s old."""

from __future__ import annotations

import pytest

from chatsvc.errors import ClientGone, EngineUnavailable, InvalidRequest, Overloaded, StoreUnavailable
from chatsvc.observe.streak import Streak


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def end_with(streak, *errors):
    for error in errors:
        with pytest.raises(type(error)), streak.counting():
            raise error


def test_only_a_streak_of_one_reason_of_ours_is_a_problem():
    streak = Streak()
    end_with(streak, StoreUnavailable(), StoreUnavailable(), EngineUnavailable(), EngineUnavailable())
    assert streak.problem() is None
    end_with(streak, InvalidRequest("no"), ClientGone(), Overloaded(), EngineUnavailable())
    assert streak.problem() == "engine_unavailable"
    with streak.counting():
        pass
    assert streak.problem() is None
    end_with(streak, KeyError(), ValueError(), KeyError())
    assert streak.problem() == "server_error"


def test_a_client_that_leaves_neither_makes_nor_ends_a_streak():
    def answer(streak):
        with streak.counting():
            yield

    streak = Streak()
    for _ in range(5):
        running = answer(streak)
        next(running)
        running.close()
    assert streak.problem() is None


def test_the_verdict_ends_with_time_and_one_more_failure_brings_it_back():
    clock = Clock()
    streak = Streak(clock=clock)
    end_with(streak, *[StoreUnavailable()] * 3)
    clock.now = 29
    assert streak.problem() == "store_unavailable"
    clock.now = 31
    assert streak.problem() is None
    end_with(streak, StoreUnavailable())
    assert streak.problem() == "store_unavailable"
