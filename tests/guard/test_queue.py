"""The queue: bounded, fair, and no slot is ever lost."""

from __future__ import annotations

import random
import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from chatsvc.errors import LimitExceeded, Overloaded
from chatsvc.guard.limits.queue import Queue, Ticket


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make_queue(clock=None, **changes) -> Queue:
    sizes = {"max_running": 2, "max_waiting": 3, "max_per_principal": 4} | changes
    return Queue(**sizes, clock=clock or Clock())


def fill(queue: Queue, *names: str) -> list[Ticket]:
    """Tickets in line; the first ones hold slots."""
    tickets = [queue.enter(name) for name in names]
    for ticket in tickets:
        ticket.wait_turn(100, 0)
    return tickets


def test_a_free_slot_is_given_at_once():
    queue = make_queue()
    ticket = queue.enter("a")
    assert ticket.wait_turn(100, 0)
    assert ticket.wait_turn(100, 0)
    assert (queue.num_running, queue.num_waiting) == (1, 0)
    assert ticket.position() == 0
    assert ticket.estimate_s() is None


def test_a_ticket_without_a_slot_waits_and_knows_its_position():
    queue = make_queue()
    _, _, third, fourth = fill(queue, "a", "b", "c", "d")
    assert not third.wait_turn(100, 0)
    assert [third.position(), fourth.position()] == [1, 2]
    assert (queue.num_running, queue.num_waiting) == (2, 2)
    late = queue.enter("e")
    assert late.position() == 3


def test_a_slot_that_becomes_free_goes_to_the_next():
    queue = make_queue()
    first, _, third, fourth = fill(queue, "a", "b", "c", "d")
    first.leave()
    assert third.wait_turn(100, 0)
    assert not fourth.wait_turn(100, 0)
    assert fourth.position() == 1


def test_who_waits_is_woken_by_the_slot():
    queue = Queue(1, 5, 5)
    first, second = fill(queue, "a", "b")
    got = []
    waiter = threading.Thread(target=lambda: got.append(second.wait_turn(100, 30)))
    waiter.start()
    first.leave()
    waiter.join(10)
    assert got == [True]


def test_leaving_twice_frees_one_slot():
    queue = make_queue()
    first, _, third, fourth = fill(queue, "a", "b", "c", "d")
    first.leave()
    first.leave()
    assert third.wait_turn(100, 0)
    assert not fourth.wait_turn(100, 0)
    assert not first.wait_turn(100, 0)
    assert first.position() == 0


def test_a_ticket_that_leaves_while_waiting_makes_room_for_another():
    queue = make_queue(max_running=1, max_waiting=1)
    first, second = fill(queue, "a", "b")
    with pytest.raises(Overloaded):
        queue.enter("c")
    second.leave()
    third = queue.enter("c")
    first.leave()
    assert third.wait_turn(100, 0)


def test_a_full_queue_refuses_before_the_cost_is_known():
    queue = make_queue(max_running=1, max_waiting=2)
    for name in "abc":
        queue.enter(name)
    with pytest.raises(Overloaded) as refusal:
        queue.enter("d")
    assert refusal.value.retry_after_s > 0


def test_a_principal_at_its_own_limit_is_refused_and_others_are_not():
    queue = make_queue(max_per_principal=2)
    fill(queue, "a", "a")
    with pytest.raises(LimitExceeded) as refusal:
        queue.enter("a")
    assert refusal.value.code == "concurrency_limit_exceeded"
    assert queue.enter("b")
    assert len(queue.tickets_of("a")) == 2


def test_a_principal_may_have_a_limit_of_its_own():
    queue = make_queue(max_per_principal=2)
    queue.enter("a", max_own=1)
    with pytest.raises(LimitExceeded):
        queue.enter("a", max_own=1)
    queue.enter("b", max_own=3)
    queue.enter("b", max_own=3)
    queue.enter("b", max_own=3)


def test_retry_after_comes_from_the_rate_at_which_slots_became_free():
    clock = Clock()
    queue = make_queue(clock, max_running=2, max_waiting=1, max_per_principal=9)
    for _ in range(30):
        pair = fill(queue, "a", "b")
        clock.now += 6
        for ticket in pair:
            ticket.leave()
    fill(queue, "a", "b", "c")
    waits = []
    for _ in range(4):
        with pytest.raises(Overloaded) as refusal:
            queue.enter("d")
        waits.append(refusal.value.retry_after_s)
    # A slot becomes free every 3 s (two slots of 6 s), so all three that are inside have left after 9 s.
    assert waits == pytest.approx([3, 6, 9, 9])


def test_an_estimate_is_the_position_times_the_rate():
    clock = Clock()
    queue = make_queue(clock, max_running=2, max_waiting=5)
    (first,) = fill(queue, "a")
    clock.now += 4
    first.leave()
    tickets = fill(queue, "a", "b", "c", "d", "e")
    assert [ticket.estimate_s() for ticket in tickets] == pytest.approx([0, 0, 2, 4, 6])


def test_slots_that_are_held_for_longer_than_ever_make_the_estimate_longer():
    clock = Clock()
    queue = make_queue(clock, max_running=1, max_waiting=1)
    (first,) = fill(queue, "a")
    clock.now += 4
    first.leave()
    _, second = fill(queue, "a", "b")
    clock.now += 50
    assert second.estimate_s() == pytest.approx(50)


def test_retry_after_of_ones_own_limit_is_when_one_of_its_own_ends():
    clock = Clock()
    queue = make_queue(clock, max_running=2, max_waiting=9, max_per_principal=2)
    (first,) = fill(queue, "a")
    clock.now += 8
    first.leave()
    fill(queue, "a", "a", "b", "b")
    for name, expected in {"a": 4, "b": 2 * 8 / 2 + 8}.items():
        with pytest.raises(LimitExceeded) as refusal:
            queue.enter(name)
        assert refusal.value.retry_after_s == pytest.approx(expected)


def test_a_hundred_waiting_delay_another_principal_by_one_turn():
    queue = make_queue(max_running=1, max_waiting=200, max_per_principal=200)
    running, *_ = fill(queue, *["many"] * 101)
    (single,) = fill(queue, "single")
    assert single.position() <= 2
    running.leave()
    for ticket in queue.tickets_of("many"):
        if ticket.state == "running":
            ticket.leave()
    assert single.wait_turn(100, 0)


def test_five_hundred_threads_share_sixteen_slots_and_leave_nothing_behind():
    queue = Queue(16, 300, 400)
    most_running, refused, served = [0], [], []
    counting = threading.Lock()
    running = [0]

    def come(number: int) -> None:
        whims = random.Random(number)
        try:
            ticket = queue.enter(f"p{number % 7}")
        except Overloaded as error:
            refused.append(error.retry_after_s)
            return
        try:
            for _ in range(2 if whims.random() < 0.2 else 1000):
                if ticket.wait_turn(whims.randrange(1, 4000), 0.05):
                    break
            else:
                return
            with counting:
                running[0] += 1
                most_running[0] = max(most_running[0], running[0])
            ticket.position()
            with counting:
                running[0] -= 1
            served.append(number)
        finally:
            ticket.leave()

    threads = [threading.Thread(target=come, args=(number,)) for number in range(500)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert most_running[0] <= 16
    assert len(served) >= 300
    assert all(wait > 0 for wait in refused)
    assert (queue.num_running, queue.num_waiting) == (0, 0)
    assert len(queue._rotation) == 0
    assert not queue._tickets


class AnyInterleaving(RuleBasedStateMachine):
    """Any calls in any order: the counts agree, and no slot is idle while a ticket waits for it."""

    tickets = Bundle("tickets")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.max_running = 2
        self.queue = Queue(2, 4, 3, self.clock)
        self.inside: list[Ticket] = []

    @rule(target=tickets, name=st.sampled_from("abc"))
    def enter(self, name):
        own = sum(ticket.principal_id == name for ticket in self.inside)
        full = len(self.inside) >= self.max_running + 4
        try:
            ticket = self.queue.enter(name)
        except LimitExceeded:
            assert own >= 3
        except Overloaded:
            assert full
        else:
            assert own < 3
            assert not full
            self.inside.append(ticket)
            return ticket
        return None

    @rule(ticket=tickets, cost=st.integers(1, 5000))
    def wait(self, ticket, cost):
        if ticket is None:
            return
        had_turn = ticket.state == "running" or None
        assert ticket.wait_turn(cost, 0) is (had_turn or ticket.state == "running")

    @rule(ticket=consumes(tickets), again=st.booleans())
    def leave(self, ticket, again):
        if ticket is None:
            return
        self.inside.remove(ticket)
        ticket.leave()
        if again:
            ticket.leave()

    @rule(seconds=st.integers(0, 20))
    def time_passes(self, seconds):
        self.clock.now += seconds

    @invariant()
    def the_books_agree(self):
        running = [ticket for ticket in self.inside if ticket.state == "running"]
        waiting = [ticket for ticket in self.inside if ticket.state == "waiting"]
        assert self.queue.num_running == len(running)
        assert self.queue.num_waiting == len(self.inside) - len(running)
        assert not waiting or len(running) >= self.max_running
        assert sorted(ticket.position() for ticket in waiting) == list(range(1, len(waiting) + 1))


TestAnyInterleaving = AnyInterleaving.TestCase
TestAnyInterleaving.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
