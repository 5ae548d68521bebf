"""From a request's sampling parameters to a runner's: defaults filled in, values limited to what float32 can compute.

Each value comes from the request, else from the model's own defaults (its ``generation_config.json``), else from the
configuration. Knows nothing about HTTP or runners.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from chatsvc.chat.types import SamplingRequest
from chatsvc.engine.protocol import Sampling
from chatsvc.errors import InvalidRequest
from chatsvc.models.card import ModelCard, SamplingDefaults

# Runners compute in float32: much smaller values would become 0, which they refuse, or make logits overflow. Below
# these values only the most probable token is ever chosen, so the limits change no answer.
_LEAST_TEMPERATURE = 1e-4
_LEAST_TOP_P = 1e-6
_LEAST_REPETITION_PENALTY = 1e-3
# The default of transformers. Candidates further down the list are practically never chosen, and cost time.
_TOP_K = 50

Value = TypeVar("Value", int, float)


def sampling_of(wanted: SamplingRequest, max_tokens: int, *defaults: SamplingDefaults) -> Sampling:
    """A runner's parameters; earlier ``defaults`` win over later ones."""
    temperature = _first(1.0, wanted.temperature, *(one.temperature for one in defaults))
    return Sampling(
        max_tokens=max_tokens,
        temperature=temperature if temperature >= _LEAST_TEMPERATURE else 0.0,
        top_p=max(_first(1.0, wanted.top_p, *(one.top_p for one in defaults)), _LEAST_TOP_P),
        top_k=max(_first(_TOP_K, wanted.top_k, *(one.top_k for one in defaults)), 0),
        min_p=_first(0.0, wanted.min_p, *(one.min_p for one in defaults)),
        repetition_penalty=max(
            _first(1.0, wanted.repetition_penalty, *(one.repetition_penalty for one in defaults)),
            _LEAST_REPETITION_PENALTY,
        ),
        presence_penalty=wanted.presence_penalty,
        frequency_penalty=wanted.frequency_penalty,
        logit_bias=dict(wanted.logit_bias),
        seed=wanted.seed,
        min_tokens=min(wanted.min_tokens, max_tokens),
        ignore_eos=wanted.ignore_eos,
        num_logprobs=wanted.num_logprobs,
        grammar=wanted.grammar,
    )


def sampling_of_choice(sampling: Sampling, index: int) -> Sampling:
    """The parameters of choice ``index``: its seed is ``seed + index``, modulo 2^64."""
    if sampling.seed is None or index == 0:
        return sampling
    seed = (sampling.seed + index + 2**63) % 2**64 - 2**63
    return msgspec.structs.replace(sampling, seed=seed)


def check_supported(wanted: SamplingRequest, card: ModelCard, num_ids: int) -> None:
    """Check that the model's runner supports the request.

    Raises:
        InvalidRequest: it does not, or a bias names an id that the model does not have.
    """
    asked = {
        "logit_bias": bool(wanted.logit_bias),
        "logprobs": wanted.num_logprobs is not None,
        "response_format": wanted.grammar is not None,
    }
    for name in card.unsupported:
        if asked[name]:
            raise InvalidRequest(
                f"{name}: the runner {card.runner!r}, which serves this model here, cannot do that; leave it out.",
                param=name,
                code="unsupported_parameter",
            )
    unknown = next((token for token in wanted.logit_bias if token >= num_ids), None)
    if unknown is not None:
        raise InvalidRequest(
            f"logit_bias: the model has no token {unknown}; its ids end at {num_ids - 1}.",
            param="logit_bias",
            code="invalid_value",
        )


def _first(fallback: Value, *values: Value | None) -> Value:
    return next((value for value in values if value is not None), fallback)
