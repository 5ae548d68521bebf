"""The room: bounded, fair, and no slot is ever lost."""

from __future__ import annotations

import random
import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from chatsvc.errors import LimitExceeded, Overloaded
from chatsvc.guard.limits.queue import Place, Room


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make_room(clock=None, **changes) -> Room:
    sizes = {"max_running": 2, "max_waiting": 3, "max_per_principal": 4} | changes
    return Room(**sizes, clock=clock or Clock())


def fill(room: Room, *names: str) -> list[Place]:
    """Places that have lined up; the first ones run."""
    places = [room.enter(name) for name in names]
    for place in places:
        place.wait_turn(100, 0)
    return places


def test_a_free_slot_is_given_at_once():
    room = make_room()
    place = room.enter("a")
    assert place.wait_turn(100, 0)
    assert place.wait_turn(100, 0)
    assert (room.num_running, room.num_waiting) == (1, 0)
    assert place.position() == 0
    assert place.estimate_s() is None


def test_who_finds_no_slot_waits_and_is_told_its_position():
    room = make_room()
    _, _, third, fourth = fill(room, "a", "b", "c", "d")
    assert not third.wait_turn(100, 0)
    assert [third.position(), fourth.position()] == [1, 2]
    assert (room.num_running, room.num_waiting) == (2, 2)
    late = room.enter("e")
    assert late.position() == 3


def test_a_slot_that_becomes_free_goes_to_the_next():
    room = make_room()
    first, _, third, fourth = fill(room, "a", "b", "c", "d")
    first.leave()
    assert third.wait_turn(100, 0)
    assert not fourth.wait_turn(100, 0)
    assert fourth.position() == 1


def test_who_waits_is_woken_by_the_slot():
    room = Room(1, 5, 5)
    first, second = fill(room, "a", "b")
    got = []
    waiter = threading.Thread(target=lambda: got.append(second.wait_turn(100, 30)))
    waiter.start()
    first.leave()
    waiter.join(10)
    assert got == [True]


def test_leaving_twice_frees_one_slot():
    room = make_room()
    first, _, third, fourth = fill(room, "a", "b", "c", "d")
    first.leave()
    first.leave()
    assert third.wait_turn(100, 0)
    assert not fourth.wait_turn(100, 0)
    assert not first.wait_turn(100, 0)
    assert first.position() == 0


def test_who_leaves_while_waiting_gives_its_place_in_the_queue_back():
    room = make_room(max_running=1, max_waiting=1)
    first, second = fill(room, "a", "b")
    with pytest.raises(Overloaded):
        room.enter("c")
    second.leave()
    third = room.enter("c")
    first.leave()
    assert third.wait_turn(100, 0)


def test_a_full_room_refuses_before_anything_is_known_of_the_cost():
    room = make_room(max_running=1, max_waiting=2)
    for name in "abc":
        room.enter(name)
    with pytest.raises(Overloaded) as refusal:
        room.enter("d")
    assert refusal.value.retry_after_s > 0


def test_a_principal_at_its_own_limit_is_refused_and_others_are_not():
    room = make_room(max_per_principal=2)
    fill(room, "a", "a")
    with pytest.raises(LimitExceeded) as refusal:
        room.enter("a")
    assert refusal.value.code == "concurrency_limit_exceeded"
    assert room.enter("b")
    assert len(room.places_of("a")) == 2


def test_a_principal_may_have_a_limit_of_its_own():
    room = make_room(max_per_principal=2)
    room.enter("a", max_own=1)
    with pytest.raises(LimitExceeded):
        room.enter("a", max_own=1)
    room.enter("b", max_own=3)
    room.enter("b", max_own=3)
    room.enter("b", max_own=3)


def test_retry_after_comes_from_the_rate_at_which_slots_became_free():
    clock = Clock()
    room = make_room(clock, max_running=2, max_waiting=1, max_per_principal=9)
    for _ in range(30):
        pair = fill(room, "a", "b")
        clock.now += 6
        for place in pair:
            place.leave()
    fill(room, "a", "b", "c")
    waits = []
    for _ in range(4):
        with pytest.raises(Overloaded) as refusal:
            room.enter("d")
        waits.append(refusal.value.retry_after_s)
    # One of two slots becomes free every 3 s; after 9 s nobody is left of those who are inside now.
    assert waits == pytest.approx([3, 6, 9, 9])


def test_an_estimate_is_the_position_times_the_rate():
    clock = Clock()
    room = make_room(clock, max_running=2, max_waiting=5)
    (first,) = fill(room, "a")
    clock.now += 4
    first.leave()
    places = fill(room, "a", "b", "c", "d", "e")
    assert [place.estimate_s() for place in places] == pytest.approx([0, 0, 2, 4, 6])


def test_slots_that_are_held_for_longer_than_ever_make_the_estimate_longer():
    clock = Clock()
    room = make_room(clock, max_running=1, max_waiting=1)
    (first,) = fill(room, "a")
    clock.now += 4
    first.leave()
    _, second = fill(room, "a", "b")
    clock.now += 50
    assert second.estimate_s() == pytest.approx(50)


def test_retry_after_of_ones_own_limit_is_when_one_of_its_own_ends():
    clock = Clock()
    room = make_room(clock, max_running=2, max_waiting=9, max_per_principal=2)
    (first,) = fill(room, "a")
    clock.now += 8
    first.leave()
    fill(room, "a", "a", "b", "b")
    for name, expected in {"a": 4, "b": 2 * 8 / 2 + 8}.items():
        with pytest.raises(LimitExceeded) as refusal:
            room.enter(name)
        assert refusal.value.retry_after_s == pytest.approx(expected)


def test_a_hundred_waiting_delay_another_principal_by_one_turn():
    room = make_room(max_running=1, max_waiting=200, max_per_principal=200)
    running, *_ = fill(room, *["many"] * 101)
    (single,) = fill(room, "single")
    assert single.position() <= 2
    running.leave()
    for place in room.places_of("many"):
        if place.state == "running":
            place.leave()
    assert single.wait_turn(100, 0)


def test_five_hundred_threads_share_sixteen_slots_and_leave_nothing_behind():
    room = Room(16, 300, 400)
    most_running, refused, served = [0], [], []
    counting = threading.Lock()
    running = [0]

    def come(number: int) -> None:
        whims = random.Random(number)
        try:
            place = room.enter(f"p{number % 7}")
        except Overloaded as error:
            refused.append(error.retry_after_s)
            return
        try:
            for _ in range(2 if whims.random() < 0.2 else 1000):
                if place.wait_turn(whims.randrange(1, 4000), 0.05):
                    break
            else:
                return
            with counting:
                running[0] += 1
                most_running[0] = max(most_running[0], running[0])
            place.position()
            with counting:
                running[0] -= 1
            served.append(number)
        finally:
            place.leave()

    threads = [threading.Thread(target=come, args=(number,)) for number in range(500)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert most_running[0] <= 16
    assert len(served) >= 300
    assert all(wait > 0 for wait in refused)
    assert (room.num_running, room.num_waiting) == (0, 0)
    assert len(room._rotation) == 0
    assert not room._places


class AnyInterleaving(RuleBasedStateMachine):
    """Whatever comes in whatever order: the books agree, and no slot is idle while somebody waits for it."""

    places = Bundle("places")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.max_running = 2
        self.room = Room(2, 4, 3, self.clock)
        self.inside: list[Place] = []

    @rule(target=places, name=st.sampled_from("abc"))
    def enter(self, name):
        own = sum(place.principal_id == name for place in self.inside)
        full = len(self.inside) >= self.max_running + 4
        try:
            place = self.room.enter(name)
        except LimitExceeded:
            assert own >= 3
        except Overloaded:
            assert full
        else:
            assert own < 3
            assert not full
            self.inside.append(place)
            return place
        return None

    @rule(place=places, cost=st.integers(1, 5000))
    def wait(self, place, cost):
        if place is None:
            return
        had_turn = place.state == "running" or None
        assert place.wait_turn(cost, 0) is (had_turn or place.state == "running")

    @rule(place=consumes(places), again=st.booleans())
    def leave(self, place, again):
        if place is None:
            return
        self.inside.remove(place)
        place.leave()
        if again:
            place.leave()

    @rule(seconds=st.integers(0, 20))
    def time_passes(self, seconds):
        self.clock.now += seconds

    @invariant()
    def the_books_agree(self):
        running = [place for place in self.inside if place.state == "running"]
        waiting = [place for place in self.inside if place.state == "waiting"]
        assert self.room.num_running == len(running)
        assert self.room.num_waiting == len(self.inside) - len(running)
        assert not waiting or len(running) >= self.max_running
        assert sorted(place.position() for place in waiting) == list(range(1, len(waiting) + 1))


TestAnyInterleaving = AnyInterleaving.TestCase
TestAnyInterleaving.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
