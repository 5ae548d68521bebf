"""Long prompts: chunks that do not stop others, and a prefix cache that does not betray one principal to another."""

import time
from collections.abc import Callable

import pytest

from chatsvc.engine.protocol import Sampling
from chatsvc.engine.runners.openvino.prefixes import BLOCK_TOKENS, PrefixIndex, block_names
from chatsvc.engine.runners.openvino.runner import OpenVinoRunner
from chatsvc.engine.runners.steering import Steering
from tests.engine.conftest import run

FIRST = Sampling(max_tokens=1, temperature=0)


def prompt(start: int, length: int = 800) -> list[int]:
    return [100 + (start * 7919 + number * 31) % 40_000 for number in range(length)]


def first_token_s(
    openvino: OpenVinoRunner, ids: list[int], key: str, clock: Callable[[], float] = time.monotonic
) -> float:
    started = clock()
    run(openvino, [(ids, FIRST)], [key])
    return clock() - started


def test_blocks_are_named_by_all_that_is_before_them() -> None:
    ids = list(range(100))
    names = block_names(ids)
    assert len(names) == 3
    assert block_names(ids[:64]) == names[:2]
    assert block_names(ids[64:96], names[1]) == names[2:]
    assert block_names([1, *ids[1:]])[2] != names[2]
    assert block_names([1] * 31) == []


def test_the_index_tells_own_from_others_and_forgets_the_oldest() -> None:
    index = PrefixIndex(2)
    one, two, three = block_names(list(range(96)))
    index.add([one], "alice")
    assert index.is_own(one, "alice")
    assert not index.is_own(one, "bob")
    assert index.is_cached(one)
    index.add([two], "bob")
    index.add([one], "bob")
    index.add([three], "carol")
    assert not index.is_cached(two)
    assert index.is_own(one, "alice")
    assert index.is_own(one, "bob")


def test_a_chunk_shrinks_with_what_a_token_costs_and_keeps_to_blocks() -> None:
    steering = Steering(max_chunk=256, max_gap_s=0.25, decode_s=0.05)
    assert steering.chunk(0, is_decoding=False) == 256
    steering.note(0.305, 256, 256, is_decoding=True)  # 1 ms a token
    chunk = steering.chunk(0, is_decoding=True)
    assert chunk == 160
    for _ in range(5):
        steering.note(0.05 + 160 * 0.004, 160, 2048, is_decoding=True)  # attention has become dear
    assert steering.chunk(2048, is_decoding=True) == BLOCK_TOKENS
    assert steering.chunk(0, is_decoding=True) == 160  # it has not at the beginning
    assert steering.prefill_s(0, 512, is_decoding=True) > steering.prefill_s(0, 512, is_decoding=False)


def test_what_a_token_costs_alone_is_no_promise_of_what_it_costs_beside_others() -> None:
    steering = Steering(max_chunk=256, max_gap_s=0.25, decode_s=0.05)
    steering.note(0.256, 256, 0, is_decoding=False)  # 1 ms a token
    assert steering.chunk(0, is_decoding=True) == 96
    steering.note(0.146, 96, 0, is_decoding=True)  # it does not cost more
    assert steering.chunk(0, is_decoding=True) == 160
    steering.note(0.512, 256, 4000, is_decoding=False)
    assert steering.chunk(4000, is_decoding=True) == 64  # not less than alone, where it was not seen
    steering.note(0.05 + 0.064, 64, 4000, is_decoding=True)
    assert steering.chunk(4000, is_decoding=True) == 160


def test_steering_learns_what_a_step_without_prompt_takes() -> None:
    steering = Steering(max_chunk=256, max_gap_s=0.25)
    for _ in range(10):
        steering.note(0.1, 0, 0, is_decoding=True)
    assert steering.decode_s == pytest.approx(0.1, rel=0.01)
    steering.note(0.5, 1, 1, is_decoding=True)  # one token tells nothing about a token's cost
    assert steering.token_s(0, is_decoding=False) == 0.001


def test_a_prompt_in_chunks_answers_like_a_prompt_at_once(openvino: OpenVinoRunner) -> None:
    ids = prompt(1, 700)
    whole = Sampling(max_tokens=8, temperature=0)
    alone = run(openvino, [(ids, whole)], ["alice"])[0]
    openvino.add(90, prompt(2, 20), Sampling(max_tokens=10_000, temperature=0), "bob")
    openvino.step()
    openvino.add(91, [*ids[:-1], ids[-1] + 1], whole, "carol")  # waits, and its last chunk is its own
    openvino.add(92, ids, whole, "alice")
    joined: list[int] = []
    while len(joined) < 8:
        joined += [token for output in openvino.step() if output.sequence_id == 92 for token in output.token_ids]
    openvino.cancel(90)
    openvino.cancel(91)
    assert sum(one == other for one, other in zip(alone, joined, strict=True)) >= 6  # near ties may part


def test_a_long_prompt_that_joins_does_not_stop_a_running_sequence(openvino: OpenVinoRunner) -> None:
    openvino.add(1, prompt(3, 40), Sampling(max_tokens=10_000, temperature=0), "alice")
    for _ in range(10):
        openvino.step()
    openvino.add(2, prompt(4, 1500), FIRST, "bob")
    num_tokens = 0
    is_over = False
    while not is_over:
        for output in openvino.step():
            num_tokens += output.sequence_id == 1
            is_over = is_over or output.sequence_id == 2
    openvino.cancel(1)
    assert num_tokens > 12  # without steering six chunks of 256; how long each took is the machine's business


def test_the_second_turn_is_quick_for_its_owner(openvino: OpenVinoRunner) -> None:
    ids = prompt(5)
    cold = first_token_s(openvino, ids, "alice", time.process_time)
    warm = first_token_s(openvino, [*ids, *prompt(6, 20)], "alice", time.process_time)
    assert warm < cold / 4  # more than ten on a quiet machine


def test_a_cached_prompt_of_another_takes_as_long_as_an_unknown_one(openvino: OpenVinoRunner) -> None:
    unknown = [first_token_s(openvino, prompt(20 + number), "mallory") for number in range(2)]
    for number in range(2):
        first_token_s(openvino, prompt(30 + number), "alice")
    guessed = [first_token_s(openvino, prompt(30 + number), "mallory") for number in range(2)]
    own = [first_token_s(openvino, prompt(30 + number), "alice") for number in range(2)]
    # The least of each: what else the machine does only ever adds.
    assert min(guessed) > 0.5 * min(unknown)
    assert min(guessed) > 4 * min(own)
    assert min(first_token_s(openvino, prompt(30 + number), "mallory") for number in range(2)) < (
        0.5 * min(guessed)
    )  # what it has waited for is its own


def test_what_another_generated_is_not_betrayed_either(openvino: OpenVinoRunner) -> None:
    ids = prompt(40, 100)
    answer = run(openvino, [(ids, Sampling(max_tokens=400, temperature=0))], ["alice"])[0]
    known = [*ids, *answer]
    began = time.monotonic()
    openvino.add(1, known, FIRST, "mallory")
    openvino.step()
    assert openvino._sequences[1].wait_until > began
    assert openvino._sequences[1].num_own == 0
    openvino.cancel(1)
    outputs = []
    openvino.add(2, known, FIRST, "alice")
    while not outputs:
        outputs = openvino.step()
    assert outputs[0].num_cached_tokens >= len(known) - 2 * BLOCK_TOKENS


def test_cancel_in_prefill_and_while_waiting_leaves_nothing(openvino: OpenVinoRunner) -> None:
    ids = prompt(50, 2000)
    openvino.add(1, ids, FIRST, "alice")
    openvino.step()
    openvino.cancel(1)
    run(openvino, [(ids, FIRST)], ["alice"])
    openvino.add(2, ids, FIRST, "mallory")
    assert openvino.step() == []
    openvino.cancel(2)
    assert openvino.step() == []
    assert openvino.cache_usage() < 0.05


def test_of_several_that_go_on_where_one_ended_one_goes_at_a_time(openvino: OpenVinoRunner) -> None:
    ids = prompt(60, 49)
    run(openvino, [(ids, FIRST)], ["alice"])
    for number in range(3):
        openvino.add(number, [*ids, *prompt(61 + number, 13)], Sampling(max_tokens=4, temperature=0), "alice")
    order: list[int] = []
    num_open = 3
    while num_open:
        for output in openvino.step():
            order.append(output.sequence_id)
            num_open -= output.finish_reason is not None
    assert order == sorted(order)  # they would write over each other's cache


def test_blocks_of_nobodys_words_are_everybodys(openvino: OpenVinoRunner) -> None:
    beginning = prompt(9, 100)

    def num_cached(number: int, key: str, num_public: int) -> int:
        openvino.add(number, [*beginning, *prompt(10 + number, 50)], FIRST, key, num_public)
        while not (outputs := openvino.step()):
            pass
        return outputs[0].num_cached_tokens

    assert num_cached(0, "alice", 100) == 0
    assert num_cached(1, "bob", 100) == 96
    assert num_cached(2, "carol", 50) == 32
    assert num_cached(3, "dora", 0) == 0


def test_a_tail_is_found_by_what_goes_on_behind_it() -> None:
    index = PrefixIndex(2)
    index.add_tail(b"x", [1, 2, 3])
    assert index.tail(b"x", [1, 2, 3, 4]) == (b"x", (1, 2, 3))
    assert index.tail(b"x", [1, 2]) is None
    assert index.tail(b"y", [1, 2, 3]) is None
    index.add_tail(b"x", [1])
    index.add_tail(b"x", [2])
    assert index.tail(b"x", [1, 2, 3]) == (b"x", (1,))
