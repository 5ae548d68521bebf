"""The pulse names a dependency that does not answer, even while its check still runs, and notices its return."""

from __future__ import annotations

import threading

from chatsvc.errors import StoreUnavailable
from chatsvc.observe.pulse import Pulse
from chatsvc.store.database import Database


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def silent():
    raise StoreUnavailable


def test_it_names_the_first_that_does_not_answer():
    assert Pulse({"a": silent, "b": silent}).problem() is None  # no check has run yet
    pulse = Pulse({"a": lambda: None, "b": silent, "c": silent})
    pulse.beat()
    assert pulse.problem() == "b"


def test_it_asks_again_and_again_until_it_is_closed(tmp_path, wait_until):
    folder = tmp_path / "later"
    database = Database(f"sqlite:///{folder / 'chatsvc.db'}")
    pulse = Pulse({"the database": database.ping}, every_s=0.01)
    pulse.start()
    wait_until(lambda: pulse.problem() == "the database")
    folder.mkdir()
    wait_until(lambda: pulse.problem() is None)
    pulse.close()
    database.close()
    assert not any(thread.name == "store-pulse" and thread.is_alive() for thread in threading.enumerate())


def test_who_is_slow_to_answer_is_named_before_the_answer_comes():
    clock, seen = Clock(), []

    def hang():
        clock.now += 2.4
        seen.append(pulse.problem())
        clock.now += 0.2
        seen.append(pulse.problem())

    pulse = Pulse({"a": hang}, clock=clock)
    pulse.beat()
    assert seen == [None, "a"]
    assert pulse.problem() is None


def test_one_that_was_never_started_can_be_closed():
    Pulse({}).close()
