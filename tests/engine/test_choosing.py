"""How a token is chosen, in the native and the reference runner, beside transformers' own processors."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from transformers import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor

from chatsvc.engine.protocol import Sampling, TokenLogprobs
from chatsvc.engine.runners.base import NotFinite
from chatsvc.engine.runners.native import library
from chatsvc.engine.runners.native.choosing import Chooser
from chatsvc.engine.runners.native.library import Output
from chatsvc.engine.runners.reference.sampling import Sofar, choose_token, logprobs_of

pytestmark = pytest.mark.skipif(
    bool(library.missing()), reason=f"the native runner does not run here: {library.missing()}"
)

LOGITS = np.array([0.5, 2.0, 1.9, -1.0, 1.5, -3.0], dtype=np.float32)
RANDOM = np.random.default_rng(3).normal(size=5000).astype(np.float32) * 3


def output_of(logits: np.ndarray[Any, Any], count: int) -> Output:
    """What a pass gives to who needs so many of the largest; 0: all."""
    order = np.argsort(-logits, kind="stable").astype(np.int32)[: count or None]
    ids = order if count else np.arange(len(logits), dtype=np.int32)
    return Output(ids, logits[ids])


def natively(
    sampling: Sampling, logits: np.ndarray[Any, Any], count: int, prompt: Any = (), eos: Any = ()
) -> list[int]:
    chooser = Chooser(sampling, prompt, eos)
    return [chooser.choose(output_of(logits, chooser.num_needed(0))).token for _ in range(count)]


def by_torch(
    sampling: Sampling, logits: np.ndarray[Any, Any], count: int, prompt: Any = (), eos: Any = ()
) -> list[int]:
    generator = torch.Generator().manual_seed(sampling.seed or 0)
    chosen: list[int] = []
    for _ in range(count):
        so_far = Sofar(Counter(chosen), prompt, len(chosen), eos)
        chosen.append(choose_token(torch.from_numpy(logits), sampling, so_far, generator))
    return chosen


BOTH = pytest.mark.parametrize("choose", [natively, by_torch])


def greedy(**values: Any) -> Sampling:
    return Sampling(max_tokens=2000, temperature=0, **values)


@BOTH
def test_greedy_with_every_penalty_is_the_largest_of_what_the_definitions_give(choose: Any) -> None:
    """OpenAI's definition of two penalties; transformers' processor for the third."""
    prompt = [1, 7, 7, 40, int(RANDOM.argmax())]
    sampling = greedy(
        repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2, logit_bias={9: 4.0, 40: -100.0}
    )
    expected: list[int] = []
    for _ in range(60):
        scores = torch.from_numpy(RANDOM.copy())[None]
        scores[0, 9] += 4.0
        scores[0, 40] -= 100.0
        scores = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([[*prompt, *expected]]), scores)[0]
        for token, times in Counter(expected).items():
            scores[token] -= 0.4 + 0.2 * times
        expected.append(int(scores.argmax()))
    assert choose(sampling, RANDOM, 60, prompt) == expected
    assert len(set(expected)) > 5


@BOTH
def test_min_p_keeps_what_transformers_keeps(choose: Any) -> None:
    sampling = Sampling(max_tokens=500, temperature=1.3, min_p=0.2, top_k=0, seed=5)
    kept = MinPLogitsWarper(0.2)(torch.tensor([[0]]), torch.from_numpy(LOGITS)[None] / 1.3)[0]
    assert (
        set(choose(sampling, LOGITS, 500))
        == set(torch.nonzero(torch.isfinite(kept)).flatten().tolist())
        == {0, 1, 2, 4}
    )
    assert set(choose(Sampling(max_tokens=99, min_p=1.0, seed=5), LOGITS, 99)) == {1}


@BOTH
def test_top_p_counts_what_min_p_has_left(choose: Any) -> None:
    """Left are 1 and 2 with 0.525 and 0.475 of them; of all six the first has 0.34."""
    sampling = Sampling(max_tokens=300, min_p=0.9, top_p=0.5, seed=5)
    assert set(choose(sampling, LOGITS, 300)) == {1}


@BOTH
def test_a_bias_forbids_or_forces(choose: Any) -> None:
    assert choose(greedy(logit_bias={1: -100}), LOGITS, 1) == [2]
    assert choose(greedy(logit_bias={5: 100}), LOGITS, 1) == [5]
    assert choose(greedy(logit_bias={5: 4.9}), LOGITS, 1) == [1]


@BOTH
def test_no_end_before_the_least_number_of_tokens(choose: Any) -> None:
    assert choose(greedy(min_tokens=3), LOGITS, 5, eos={1, 2}) == [4, 4, 4, 1, 1]
    drawn = choose(Sampling(max_tokens=400, min_tokens=300, seed=1), LOGITS, 400, eos={1, 2})
    assert not {1, 2} & set(drawn[:300])
    assert {1, 2} <= set(drawn[300:])


def test_what_a_penalty_gave_is_drawn_from_with_the_frequencies_that_follow() -> None:
    counts: Counter[int] = Counter()
    for seed in range(4000):
        counts.update(natively(Sampling(max_tokens=1, repetition_penalty=2.0, seed=seed), LOGITS, 1, [1, 3]))
    changed = np.array([0.5, 1.0, 1.9, -2.0, 1.5, -3.0])
    for token, weight in enumerate(np.exp(changed) / np.exp(changed).sum()):
        assert counts[token] / 4000 == pytest.approx(weight, abs=0.03)


def test_log_probabilities_are_the_models_own() -> None:
    truth = torch.log_softmax(torch.from_numpy(RANDOM).double(), -1)
    sampling = greedy(num_logprobs=3, logit_bias={77: 100}, repetition_penalty=1.5)
    chooser = Chooser(sampling, [3])
    assert chooser.num_needed(0) == 0
    chosen = chooser.choose(output_of(RANDOM, 0))
    expected = logprobs_of(torch.from_numpy(RANDOM), 77, 3)
    assert chosen.token == 77
    assert chosen.logprobs is not None
    assert expected.top_ids == chosen.logprobs.top_ids == torch.topk(truth, 3).indices.tolist()
    for found in (chosen.logprobs, expected):
        assert found.logprob == pytest.approx(float(truth[77]), abs=1e-5)
        assert found.top_logprobs == pytest.approx(torch.topk(truth, 3).values.tolist(), abs=1e-5)


def test_no_alternatives_are_a_report_too() -> None:
    chosen = Chooser(greedy(num_logprobs=0)).choose(output_of(LOGITS, 0))
    assert isinstance(chosen.logprobs, TokenLogprobs)
    assert (chosen.token, chosen.logprobs.top_ids, chosen.logprobs.top_logprobs) == (1, [], [])
    assert Chooser(greedy()).choose(output_of(LOGITS, 1)).logprobs is None


def test_reporting_and_neutral_values_change_no_choice() -> None:
    plain = natively(Sampling(max_tokens=300, seed=9), RANDOM, 300)
    for values in ({"num_logprobs": 5}, {"min_p": 0.0}, {"logit_bias": {3: 0.0}}, {"min_tokens": 300}):
        assert natively(Sampling(max_tokens=300, seed=9, **values), RANDOM, 300) == plain


@BOTH
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(choose: Any, bad: float) -> None:
    logits = LOGITS.copy()
    logits[3] = bad
    if choose is natively:
        with pytest.raises(NotFinite):
            Chooser(greedy()).choose(Output(np.arange(1, dtype=np.int32), LOGITS[:1], is_finite=False))
    else:
        with pytest.raises(NotFinite):
            choose(greedy(), logits, 1)


def test_where_every_token_is_forbidden_there_is_nothing_to_choose() -> None:
    for sampling in (greedy(min_tokens=1), Sampling(max_tokens=9, min_tokens=1)):
        with pytest.raises(NotFinite):
            natively(sampling, LOGITS, 1, eos=range(6))


def test_a_random_number_next_to_one_draws_the_last() -> None:
    chooser = Chooser(Sampling(max_tokens=9))
    chooser._generator = type("", (), {"random": lambda self: 1 - 2**-53})()  # type: ignore[assignment]
    assert chooser.choose(output_of(LOGITS, 50)).token == 5
