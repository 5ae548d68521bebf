"""What is asked of the engine: values that every runner can compute with."""

from __future__ import annotations

import pytest

from chatsvc.chat.planning import sampling_of
from chatsvc.chat.types import ChatRequest, Message

QUESTION = (Message("user", "Hi"),)


def _sampling(*, temperature=1.0, top_p=1.0, **values):
    request = ChatRequest(messages=QUESTION, max_tokens=None, temperature=temperature, top_p=top_p, **values)
    return sampling_of(request, max_tokens=7)


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-46, 1e-30])
def test_a_temperature_too_small_for_float32_is_greedy(temperature):
    assert _sampling(temperature=temperature).temperature == 0.0


@pytest.mark.parametrize("top_p", [5e-324, 7e-46, 1e-30])
def test_a_top_p_too_small_for_float32_still_chooses_the_most_probable_token(top_p):
    assert 0 < _sampling(top_p=top_p).top_p < 1e-5


def test_ordinary_values_are_passed_on_as_they_are():
    given = _sampling(temperature=0.7, top_p=0.9, seed=-1, presence_penalty=0.5, frequency_penalty=-0.5)
    assert (given.temperature, given.top_p, given.seed) == (0.7, 0.9, -1)
    assert (given.presence_penalty, given.frequency_penalty, given.max_tokens) == (0.5, -0.5, 7)
