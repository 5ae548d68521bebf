"""Deficit round robin: a principal with a hundred requests does not delay others, and tokens are shared evenly."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chatsvc.guard.limits.fair import Rotation

QUANTUM = 256
costs = st.integers(1, 40_000)
names = st.sampled_from("abcdef")


def taken(rotation: Rotation[tuple[str, int]]) -> list[tuple[str, int]]:
    items = []
    while (item := rotation.take()) is not None:
        items.append(item)
    return items


def test_an_empty_ring_gives_nothing():
    rotation: Rotation[str] = Rotation()
    assert rotation.take() is None
    assert rotation.order() == []
    assert len(rotation) == 0


def test_one_principal_is_served_in_the_order_it_came():
    rotation: Rotation[int] = Rotation()
    for number in range(20):
        rotation.add("a", number, 5000 - number)
    assert rotation.order() == list(range(20))


@given(
    costs_of_many=st.lists(costs, min_size=100, max_size=100),
    cost_of_one=costs,
    num_taken_before=st.integers(0, 99),
    other_names=st.lists(names, unique=True, min_size=1),
)
def test_a_hundred_waiting_delay_anothers_single_one_by_no_more_than_one_turn(
    costs_of_many, cost_of_one, num_taken_before, other_names
):
    rotation: Rotation[tuple[str, int]] = Rotation(QUANTUM)
    for name in other_names:
        for number, cost in enumerate(costs_of_many):
            rotation.add(name, (name, number), cost)
    for _ in range(num_taken_before):
        rotation.take()
    rotation.add("single", ("single", 0), cost_of_one)
    order = [name for name, _ in taken(rotation)]
    before = order[: order.index("single")]
    assert all(before.count(name) <= 1 for name in other_names)


@given(num_each=st.integers(2, 60), cost=costs, names=st.lists(names, unique=True, min_size=2))
def test_equal_requests_of_those_who_always_wait_alternate(num_each, cost, names):
    rotation: Rotation[str] = Rotation(QUANTUM)
    for name in names:
        for _ in range(num_each):
            rotation.add(name, name, cost)
    order = rotation.order()
    for start in range(0, len(order), len(names)):
        assert sorted(order[start : start + len(names)]) == sorted(names)


@given(small=st.integers(QUANTUM, 1000), large=st.integers(1000, 8000), num_taken=st.integers(10, 150))
def test_tokens_not_requests_are_shared(small, large, num_taken):
    rotation: Rotation[str] = Rotation(QUANTUM)
    for _ in range(200):
        rotation.add("small", "small", small)
        rotation.add("large", "large", large)
    order = rotation.order()[:num_taken]
    tokens = {"small": order.count("small") * small, "large": order.count("large") * large}
    assert abs(tokens["small"] - tokens["large"]) <= large + small + QUANTUM


def test_many_tiny_requests_cost_a_quantum_each():
    rotation: Rotation[str] = Rotation(QUANTUM)
    for _ in range(100):
        rotation.add("tiny", "tiny", 1)
        rotation.add("usual", "usual", QUANTUM)
    assert rotation.order()[:100].count("tiny") == 50


def test_who_comes_back_in_debt_waits_until_it_is_paid():
    rotation: Rotation[str] = Rotation(QUANTUM)
    for _ in range(30):
        rotation.add("other", "other", QUANTUM)
    rotation.add("big", "big", QUANTUM * 5)
    while rotation.take() != "big":
        pass
    rotation.add("big", "big", QUANTUM)
    assert 4 <= rotation.order().index("big") <= 6


def test_idle_time_pays_a_debt_but_earns_no_credit():
    rotation: Rotation[str] = Rotation(QUANTUM)
    for _ in range(60):
        rotation.add("other", "other", QUANTUM)
    rotation.add("big", "big", QUANTUM * 5)
    for _ in range(20):
        rotation.take()
    for _ in range(5):
        rotation.add("big", "big", QUANTUM)
    order = rotation.order()
    assert order.index("big") <= 1
    assert order[:10].count("big") == 5


def test_debts_are_forgotten_when_the_ring_is_empty():
    rotation: Rotation[str] = Rotation(QUANTUM)
    rotation.add("a", "a", QUANTUM * 100)
    rotation.take()
    rotation.add("a", "a", QUANTUM)
    rotation.add("b", "b", QUANTUM)
    assert rotation.order() == ["a", "b"]


def test_paid_debts_do_not_pile_up():
    rotation: Rotation[str] = Rotation(QUANTUM)
    for _ in range(3000):
        rotation.add("always", "always", QUANTUM)
    for number in range(1000):
        rotation.add(f"once-{number}", "once", QUANTUM * 2)
        rotation.take()
    assert len(rotation._debtors) < 100


changes = st.lists(st.tuples(st.sampled_from(["add", "take", "remove"]), names, costs), max_size=120)


@given(changes)
def test_every_request_comes_out_exactly_once_and_order_foretells_it(changes):
    rotation: Rotation[tuple[str, int]] = Rotation(QUANTUM)
    inside: list[tuple[str, int]] = []
    for number, (verb, name, cost) in enumerate(changes):
        if verb == "add":
            inside.append((name, number))
            rotation.add(name, inside[-1], cost)
        elif verb == "remove":
            gone = inside.pop(cost % len(inside)) if inside else (name, -1)
            rotation.remove(gone[0], gone)
            rotation.remove(gone[0], gone)
        else:
            expected = rotation.order()[:1]
            item = rotation.take()
            assert expected == ([item] if item else [])
            if item:
                inside.remove(item)
        assert len(rotation) == len(inside)
    foretold = rotation.order()
    assert taken(rotation) == foretold
    assert sorted(foretold) == sorted(inside)
