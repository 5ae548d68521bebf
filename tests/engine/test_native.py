"""The native runner over the embedded model: answers, and that company, chunks and cache change no bit of them."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from chatsvc.engine.engine_side.memory import private_bytes
from chatsvc.engine.protocol import Sampling, TokenLogprobs
from chatsvc.engine.runners.base import RunnerOptions
from chatsvc.engine.runners.native import library
from chatsvc.engine.runners.native.library import PAGE_TOKENS
from chatsvc.engine.runners.native.runner import NativeRunner
from chatsvc.engine.runners.sizing import MIB
from chatsvc.errors import OperatorError
from chatsvc.models.store import ModelFolder
from tests.engine.conftest import run
from tests.engine.test_process import GREEDY, PARIS, PARIS_ID

pytestmark = pytest.mark.skipif(
    bool(library.missing()), reason=f"the native runner does not run here: {library.missing()}"
)

FIRST = Sampling(max_tokens=1, temperature=0)
SHORT = Sampling(max_tokens=12, temperature=0)


def load(folder: ModelFolder, **options: float) -> NativeRunner:
    with folder.weights() as path:
        runner = NativeRunner(path, folder.card(), RunnerOptions(**{"num_threads": 2, **options}))  # type: ignore[arg-type]
    runner.warm_up()
    return runner


@pytest.fixture(scope="module")
def native(smollm2: ModelFolder) -> NativeRunner:
    return load(smollm2, max_num_seqs=8, max_gap_ms=100)


def prompt(start: int, length: int) -> list[int]:
    return [100 + (start * 7919 + number * 31) % 40_000 for number in range(length)]


def first_output(runner: NativeRunner, ids: Sequence[int], key: str) -> int:
    """How many tokens of the prompt were found in the cache."""
    runner.add(1, ids, FIRST, key)
    outputs = []
    while not outputs:
        outputs = runner.step()
    return outputs[0].num_cached_tokens


def test_it_answers(native: NativeRunner) -> None:
    assert native.card.runner == "native"
    assert PARIS_ID in run(native, [(PARIS, GREEDY)])[0]


def test_company_changes_no_token(native: NativeRunner) -> None:
    prompts = [prompt(number, length) for number, length in enumerate((1, 2, 31, 32, 33, 64, 100, 300, 700, 5))]
    alone = [run(native, [(ids, SHORT)], [f"alone {number}"])[0] for number, ids in enumerate(prompts)]
    together = run(native, [(ids, SHORT) for ids in prompts], [f"together {number}" for number in range(len(prompts))])
    assert together == alone
    assert all(len(ids) > 0 for ids in alone)


def test_chunks_and_threads_change_no_token(smollm2: ModelFolder, native: NativeRunner) -> None:
    work = [(prompt(20 + number, 200 + 77 * number), SHORT) for number in range(3)]
    expected = run(native, work, ["a", "b", "c"])
    small = load(smollm2, max_num_seqs=3, prefill_chunk_tokens=32, num_threads=1)
    assert run(small, work, ["a", "b", "c"]) == expected


def test_a_cached_prefix_changes_no_token_and_is_its_owners_alone(native: NativeRunner) -> None:
    ids = prompt(30, 200)
    longer = [*ids, *prompt(31, 40)]
    assert first_output(native, ids, "alice") == 0
    assert first_output(native, longer, "alice") == 200 // PAGE_TOKENS * PAGE_TOKENS
    assert first_output(native, longer, "mallory") == 0
    assert first_output(native, longer, "mallory") == 240 // PAGE_TOKENS * PAGE_TOKENS
    assert run(native, [(longer, SHORT)], ["alice"]) == run(native, [(longer, SHORT)], ["carol"])


def answers(runner: NativeRunner, prompts: Sequence[Sequence[int]], keys: Sequence[str], num_public: int = 0):
    """What each is answered when all come together, and how many of its tokens were found in the cache."""
    for number, (ids, key) in enumerate(zip(prompts, keys, strict=True)):
        runner.add(number, ids, SHORT, key, num_public)
    ids_of: dict[int, list[int]] = {number: [] for number in range(len(prompts))}
    cached: dict[int, int] = {}
    running = set(ids_of)
    while running:
        for output in runner.step():
            cached.setdefault(output.sequence_id, output.num_cached_tokens)
            ids_of[output.sequence_id] += output.token_ids
            running -= {output.sequence_id} if output.finish_reason else set()
    assert runner.cache_usage() == 0
    return list(ids_of.values()), [cached[number] for number in ids_of]


def test_those_who_come_together_share_what_they_begin_with(native: NativeRunner) -> None:
    prompts = [[*prompt(32, 110), *prompt(33 + number, 60)] for number in range(4)]
    alone = [run(native, [(ids, SHORT)], [f"alone {number}"])[0] for number, ids in enumerate(prompts)]
    together, cached = answers(native, prompts, ["dora", "dora", "mallory", "dora"])
    assert together == alone
    assert cached == [0, 96, 0, 96]


@pytest.mark.parametrize("num_public", [20, 32, 50, 64, 75])
def test_nobodys_words_are_computed_once_for_all_and_no_others(native: NativeRunner, num_public: int) -> None:
    beginning = prompt(1000 + num_public, 80)
    prompts = [[*beginning, *prompt(50 + number, 40)] for number in range(4)]
    alone = [run(native, [(ids, SHORT)], [f"single {number}"])[0] for number, ids in enumerate(prompts)]
    together, cached = answers(native, prompts, ["alice", "bob", "carol", "dora"], num_public)
    assert together == alone
    assert sorted(cached) in ([0, 0, *[num_public] * 2], [0, *[num_public] * 3])  # a first pass may have room for two
    assert answers(native, prompts[:1], ["erin"], num_public)[1] == [num_public]
    assert answers(native, prompts[:1], ["frank"])[1] == [0]
    all_public = [beginning[:num_public]]
    assert answers(native, all_public, ["grace"], num_public)[1] == [(num_public - 1) // PAGE_TOKENS * PAGE_TOKENS]


def test_prompts_that_come_one_after_another_share_what_neither_has_yet(native: NativeRunner) -> None:
    beginning = prompt(70, 500)
    answers(native, [prompt(70, 30)], ["bob"], 20)
    native.add(1, [*beginning, *prompt(71, 200)], FIRST, "alice", 20)
    native.step()
    native.add(2, [*beginning, *prompt(72, 150)], FIRST, "alice", 20)
    cached: dict[int, int] = {}
    while len(cached) < 2:
        cached |= {output.sequence_id: output.num_cached_tokens for output in native.step()}
    assert cached == {1: 20 + 480 - 256, 2: 256}


def test_a_page_whose_filler_goes_is_filled_by_another(smollm2: ModelFolder) -> None:
    runner = load(smollm2, max_num_seqs=3, prefill_chunk_tokens=96)
    runner.add(1, prompt(36, 1000), FIRST, "bob")
    runner.add(2, [*prompt(37, 70), *prompt(38, 30)], FIRST, "alice")
    runner.add(3, [*prompt(37, 70), *prompt(39, 70)], SHORT, "alice")
    runner.step()  # a half for bob, a half for the shorter one of alice's: it stands in its second page
    runner.cancel(2)
    runner.cancel(1)
    cached = []
    while runner.cache_usage() > 0:
        cached += [output.num_cached_tokens for output in runner.step()][:1]
    assert cached[0] == 32
    assert first_output(runner, [*prompt(37, 70), *prompt(39, 70)], "alice") == 128


def test_whoever_comes_and_goes_pages_are_whose_they_are(smollm2: ModelFolder, native: NativeRunner) -> None:
    """Random prompts with common beginnings, more than the cache can keep, some cancelled: answers are those alone."""
    whims = random.Random(5)
    runner = load(smollm2, max_num_seqs=4, cache_size_gb=0.001, prefill_chunk_tokens=64)
    prompts = [[*prompt(200, whims.choice([20, 70, 130])), *prompt(201 + number, 80)] for number in range(60)]
    expected = [run(native, [(ids, SHORT)], [f"only {number}"])[0] for number, ids in enumerate(prompts)]
    ids_of: dict[int, list[int]] = {}
    waiting = list(range(len(prompts)))
    running: set[int] = set()
    num_cancelled = 0
    while waiting or running:
        if waiting and whims.random() < 0.5:
            number = waiting.pop()
            ids_of[number] = []
            running.add(number)
            runner.add(number, prompts[number], SHORT, whims.choice(["alice", "bob"]), num_public=20)
        if running and whims.random() < 0.05:
            number = whims.choice(sorted(running))
            running.remove(number)
            runner.cancel(number)
            del ids_of[number]
            num_cancelled += 1
        for output in runner.step():
            ids_of[output.sequence_id] += output.token_ids
            running -= {output.sequence_id} if output.finish_reason else set()
    assert num_cancelled > 0
    assert runner._pages.num_ever_used == len(runner._pages)
    assert ids_of == {number: expected[number] for number in ids_of}
    assert runner.cache_usage() == 0


def test_a_completion_is_a_prefix_of_the_next_turn(native: NativeRunner) -> None:
    ids = prompt(40, 90)
    completion = run(native, [(ids, Sampling(max_tokens=60, temperature=0))], ["alice"])[0]
    turn = [*ids, *completion, *prompt(41, 10)]
    assert first_output(native, turn, "alice") >= (len(ids) + len(completion) - 1) // PAGE_TOKENS * PAGE_TOKENS


def test_running_sequences_go_on_while_a_long_prompt_joins(native: NativeRunner) -> None:
    native.add(1, prompt(50, 40), Sampling(max_tokens=2000, temperature=0), "alice")
    native.step()
    native.add(2, prompt(51, 1500), FIRST, "bob")
    owners = []
    while 2 not in owners:
        owners += [output.sequence_id for output in native.step()]
    native.cancel(1)
    assert owners.count(1) >= 1500 // 256


def test_cancel_frees_everything_whether_running_or_waiting(smollm2: ModelFolder) -> None:
    runner = load(smollm2, max_num_seqs=2, cache_size_gb=0.001)  # the smallest useful cache: one sequence
    long = Sampling(max_tokens=1900, temperature=0)
    runner.add(1, prompt(60, 100), long, "")
    runner.add(2, prompt(61, 100), long, "")
    assert [output.sequence_id for output in runner.step()] == [1]
    assert runner.cache_usage() > 0.9
    runner.cancel(2)
    runner.add(3, prompt(62, 100), long, "")
    runner.cancel(1)
    assert [output.sequence_id for output in runner.step()] == [3]
    runner.cancel(3)
    runner.cancel(3)
    assert runner.step() == []
    assert runner.cache_usage() == 0


@pytest.mark.parametrize(
    ("ids", "max_tokens"), [([], 1), ([-1], 1), ([1_000_000], 1), ([5] * 9000, 1), ([5] * 100, 100_000), ([5], 0)]
)
def test_what_cannot_be_served_is_refused_and_the_next_is_served(
    native: NativeRunner, ids: list[int], max_tokens: int
) -> None:
    with pytest.raises(ValueError, match=r"at least one|do not fit"):
        native.add(1, ids, Sampling(max_tokens=max_tokens, temperature=0), "")
    assert len(run(native, [([5, 6], Sampling(max_tokens=2, temperature=0))])[0]) == 2


def test_a_seed_repeats_and_none_does_not(native: NativeRunner) -> None:
    def sampled(seed: int | None) -> list[int]:
        return run(native, [(prompt(80, 20), Sampling(max_tokens=20, temperature=1.5, seed=seed))])[0]

    assert sampled(-5) == sampled(-5)
    assert sampled(6) != sampled(-5)
    assert sampled(None) != sampled(None)


def test_a_seed_alone_decides_in_any_company(native: NativeRunner) -> None:
    work = [(prompt(81, 20), Sampling(max_tokens=20, temperature=1.0, seed=number)) for number in range(4)]
    assert run(native, work) == [run(native, [one])[0] for one in work]


def test_the_cache_is_sized_from_the_memory_limit(smollm2: ModelFolder) -> None:
    with pytest.raises(OperatorError, match="does not fit") as raised:
        load(smollm2, memory_limit_mb=200)
    needed_mb = int(raised.value.message.split("it needs ")[1].split()[0])
    with smollm2.weights() as path:
        runner = NativeRunner(path, smollm2.card(), RunnerOptions(memory_limit_mb=needed_mb))
    assert 2048 <= runner.card.context_length == len(runner._pages) * PAGE_TOKENS < 2200
    runner._options = RunnerOptions(memory_limit_mb=1)  # as if it had taken more than was thought
    with pytest.raises(OperatorError, match="it takes"):
        runner.warm_up()


def test_the_cache_takes_memory_only_when_it_is_used(native: NativeRunner, smollm2: ModelFolder) -> None:
    def cached_mib() -> int:
        lines = Path("/proc/self/smaps").read_text().splitlines()
        rows = [int(line.split()[1]) for line in lines if line.startswith("Rss:")]
        return sum(rows) * 1024 // MIB

    before = cached_mib()
    runner = load(smollm2, cache_size_gb=8.0)
    assert cached_mib() - before < 1000
    assert len(runner._pages) * 32 > 200_000


def test_a_runner_that_has_rested_has_the_cache_of_a_burst_in_memory(smollm2: ModelFolder) -> None:
    def growth(runner: NativeRunner) -> int:
        before = private_bytes()
        steps_and_ids(runner, [(prompt(number, 60), SHORT) for number in range(8)])
        return private_bytes() - before

    cold, rested = load(smollm2, max_num_seqs=8), load(smollm2, max_num_seqs=8)
    while rested.rest():
        pass
    num_bytes = 8 * 3 * cold._num_cache_bytes // len(cold._pages)
    assert growth(cold) > 0.8 * num_bytes
    assert growth(rested) < 0.2 * num_bytes
    assert rested.rest()  # what was said is kept for its owner, so the next burst wants other pages


def steps_and_ids(runner: NativeRunner, work: Sequence[tuple[Sequence[int], Sampling]]) -> tuple[int, list[list[int]]]:
    for number, (ids, sampling) in enumerate(work):
        runner.add(number, ids, sampling, "steps")
    results: list[list[int]] = [[] for _ in work]
    num_open, num_steps = len(work), 0
    while num_open:
        num_steps += 1
        for output in runner.step():
            assert output.num_generated - len(output.token_ids) == (output.finish_reason == "stop")
            results[output.sequence_id] += output.token_ids
            num_open -= output.finish_reason is not None
    return num_steps, results


REPEATING = [504, 3575, 282, 4649, 314, 7042, 30] * 12


@pytest.fixture(scope="module")
def careful(smollm2: ModelFolder) -> NativeRunner:
    """Guesses nothing."""
    return load(smollm2, max_num_seqs=8, max_draft_tokens=0)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_guesses_change_no_token_and_save_steps(
    careful: NativeRunner, native: NativeRunner, temperature: float
) -> None:
    work = [
        (REPEATING, Sampling(max_tokens=60, temperature=temperature, seed=3)),
        (PARIS, Sampling(max_tokens=40, temperature=temperature, seed=4, presence_penalty=0.5)),
    ]
    num_careful, expected = steps_and_ids(careful, work)
    num_guessing, guessed = steps_and_ids(native, work)
    assert guessed == expected
    assert num_careful == 60
    assert num_guessing < (30 if temperature == 0 else 60)


# Each with something that makes its choice depend on more than the few largest logits, or on what came before.
DEMANDING = [
    Sampling(max_tokens=24, temperature=0.9, repetition_penalty=1.3, seed=5),
    Sampling(max_tokens=24, temperature=0, repetition_penalty=1.05, num_logprobs=4),
    Sampling(max_tokens=24, temperature=1.2, min_p=0.05, top_p=0.9, top_k=0, seed=6, num_logprobs=0),
    Sampling(max_tokens=24, temperature=1, presence_penalty=-1.5, frequency_penalty=0.7, seed=7),
    Sampling(max_tokens=24, temperature=0.8, logit_bias={1000: 8.0, 30: -100.0}, seed=8, num_logprobs=20),
    Sampling(max_tokens=24, temperature=0, min_tokens=20),
    Sampling(max_tokens=24, temperature=0, ignore_eos=True),
    Sampling(max_tokens=24, temperature=0.7, top_p=0.8, seed=9),
]


def results_of(runner: NativeRunner, work: Sequence[tuple[Sequence[int], Sampling]]) -> list[Any]:
    """Tokens with their log-probabilities."""
    for number, (ids, sampling) in enumerate(work):
        runner.add(number, ids, sampling, "results")
    results: list[tuple[list[int], list[TokenLogprobs]]] = [([], []) for _ in work]
    num_open = len(work)
    while num_open:
        for output in runner.step():
            results[output.sequence_id][0].extend(output.token_ids)
            results[output.sequence_id][1].extend(output.logprobs)
            num_open -= output.finish_reason is not None
    return results


@pytest.mark.parametrize("prompt_ids", [PARIS, REPEATING])
def test_company_and_guesses_change_no_bit_whatever_is_asked_for(
    careful: NativeRunner, native: NativeRunner, prompt_ids: list[int]
) -> None:
    alone = [results_of(careful, [(prompt_ids, sampling)])[0] for sampling in DEMANDING]
    assert [results_of(native, [(prompt_ids, sampling)])[0] for sampling in DEMANDING] == alone
    assert results_of(native, [(prompt_ids, sampling) for sampling in DEMANDING]) == alone
    assert results_of(careful, [(prompt_ids, sampling) for sampling in DEMANDING[::-1]]) == alone[::-1]


def test_the_end_may_be_put_off_and_passed_over(native: NativeRunner) -> None:
    """The embedded model answers in eight tokens, then ends."""
    plain, held_open, passed_over = (
        run(native, [(PARIS, Sampling(max_tokens=30, temperature=0, **values))])[0]
        for values in ({}, {"min_tokens": 20}, {"ignore_eos": True})
    )
    assert len(plain) < 12
    assert 20 <= len(held_open) <= 30
    assert not {0, 2} & set(held_open)
    assert len(passed_over) == 30
    assert passed_over[: len(plain) + 1] == [*plain, 2]
    assert held_open[: len(plain)] == plain


def test_a_bias_for_an_id_that_is_not_there_is_refused(native: NativeRunner) -> None:
    with pytest.raises(ValueError, match="logit_bias"):
        native.add(1, PARIS, Sampling(max_tokens=3, logit_bias={60_000: 1.0}), "")


def test_an_answer_that_ends_inside_a_right_guess_ends_there(careful: NativeRunner, native: NativeRunner) -> None:
    """The completion stands in the prompt already, its end included."""
    answer = run(native, [(PARIS, GREEDY)])[0]
    again = [*PARIS, *answer, 2, 198, *PARIS]
    _, (ids,) = steps_and_ids(native, [(again, GREEDY)])
    assert ids == run(careful, [(again, GREEDY)])[0]
    assert native.cache_usage() == 0


def test_a_short_prompt_does_not_wait_for_a_long_one_before_it(native: NativeRunner) -> None:
    native.add(1, prompt(90, 3000), FIRST, "alice")
    native.step()
    native.add(2, prompt(91, 60), FIRST, "bob")
    native.add(3, prompt(92, 400), FIRST, "carol")
    ended: list[int] = []
    while len(ended) < 3:
        ended += [output.sequence_id for output in native.step()]
    assert ended == [2, 3, 1]


def test_prompts_of_one_length_end_one_after_the_other(native: NativeRunner) -> None:
    for number in range(3):
        native.add(number, prompt(93 + number, 250), FIRST, "alice")
    ended: list[list[int]] = []
    while sum(map(len, ended)) < 3:
        ended += [ids] if (ids := [output.sequence_id for output in native.step()]) else []
    assert ended == [[0], [1], [2]]


def test_who_needs_much_room_holds_up_nobody_and_is_not_passed_for_ever(smollm2: ModelFolder) -> None:
    runner = load(smollm2, max_num_seqs=4, cache_size_gb=0.001)
    runner.add(1, prompt(95, 1000), Sampling(max_tokens=40, temperature=0), "mallory")
    runner.step()
    runner.add(2, prompt(96, 1500), FIRST, "mallory")  # must wait for the first to end
    for number in range(3, 9):
        runner.add(number, prompt(number, 20), FIRST, "bob")
    ended: list[int] = []
    while len(ended) < 8:
        ended += [output.sequence_id for output in runner.step() if output.finish_reason]
    assert ended[:4] == [3, 4, 5, 6]
    assert ended.index(7) > ended.index(1)
