"""What is asked of the engine: defaults in their order, and values that every runner can compute with."""

from __future__ import annotations

import pytest

from chatsvc.chat.sampling import sampling_of
from chatsvc.chat.types import SamplingRequest
from chatsvc.engine.protocol import Sampling
from chatsvc.models.card import SamplingDefaults


def _sampling(*defaults, **values):
    return sampling_of(SamplingRequest(**values), 7, *defaults)


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-46, 1e-30])
def test_a_temperature_too_small_for_float32_is_greedy(temperature):
    assert _sampling(temperature=temperature).temperature == 0.0


@pytest.mark.parametrize("top_p", [5e-324, 7e-46, 1e-30])
def test_a_top_p_too_small_for_float32_still_chooses_the_most_probable_token(top_p):
    assert 0 < _sampling(top_p=top_p).top_p < 1e-5


def test_what_the_request_says_is_passed_on_as_it_is():
    values = {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 12,
        "min_p": 0.05,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "logit_bias": {3: -100.0},
        "seed": -1,
        "min_tokens": 2,
        "ignore_eos": True,
        "num_logprobs": 0,
    }
    assert _sampling(SamplingDefaults(temperature=1, top_k=1), **values) == Sampling(max_tokens=7, **values)


def test_a_value_comes_from_the_request_then_the_model_then_the_configuration():
    model = SamplingDefaults(temperature=0.6, top_k=20)
    configured = SamplingDefaults(temperature=0.7, top_p=0.8, repetition_penalty=1.05, min_p=0.1)
    given = _sampling(model, configured, temperature=0.0)
    assert (given.temperature, given.top_k, given.top_p) == (0.0, 20, 0.8)
    assert (given.repetition_penalty, given.min_p) == (1.05, 0.1)
    assert _sampling(model, configured).temperature == 0.6
    assert _sampling() == Sampling(max_tokens=7)


def test_no_bound_on_the_candidates_is_asked_for_by_0_and_by_what_is_less():
    model = SamplingDefaults(top_k=20)
    assert [_sampling(model, top_k=value).top_k for value in (0, -1)] == [0, 0]


def test_no_more_tokens_are_asked_for_than_there_may_be():
    assert _sampling(min_tokens=100).min_tokens == 7
