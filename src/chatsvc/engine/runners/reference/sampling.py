"""Choosing a token from logits, for runners that do it with torch. Knows no model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from chatsvc.engine.protocol import Sampling, TokenLogprobs
from chatsvc.engine.runners.base import MAX_TOP_K, NotFinite


@dataclass(frozen=True, slots=True)
class Sofar:
    """The state that a choice depends on, besides the logits.

    Attributes:
        counts: how often each id is in the completion.
        prompt_ids: the ids of the prompt.
        num_chosen: tokens of the completion.
        eos: ids that are not allowed before ``min_tokens``.
        allowed: for each id whether it is allowed at all; None: all are.
    """

    counts: Mapping[int, int]
    prompt_ids: Collection[int] = ()
    num_chosen: int = 0
    eos: Collection[int] = ()
    allowed: NDArray[np.bool_] | None = None


def choose_token(logits: torch.Tensor, sampling: Sampling, so_far: Sofar, generator: torch.Generator) -> int:
    """The next token id.

    Args:
        logits: of one position, shape (vocabulary,), float32.
        sampling: how to choose.
        so_far: what came before.
        generator: the sequence's own source of randomness.

    Raises:
        NotFinite: a logit is NaN or infinite.
    """
    if not bool(torch.isfinite(logits).all()):
        raise NotFinite
    logits = _changed(logits, sampling, so_far)
    if bool(torch.isneginf(logits).all()):  # every token is forbidden
        raise NotFinite
    if sampling.temperature == 0 or sampling.top_k == 1:
        return int(torch.argmax(logits))
    top_k = min(sampling.top_k if sampling.top_k > 0 else MAX_TOP_K, MAX_TOP_K, logits.numel())
    values, ids = torch.topk(logits, top_k)  # sorted, largest first
    probabilities = torch.softmax(values / sampling.temperature, dim=-1)
    probabilities = torch.where(probabilities >= sampling.min_p * probabilities[0], probabilities, 0.0)
    before = torch.cumsum(probabilities, dim=-1) - probabilities
    probabilities = torch.where(before < sampling.top_p * probabilities.sum(), probabilities, 0.0)
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])


def logprobs_of(logits: torch.Tensor, token: int, num_logprobs: int) -> TokenLogprobs:
    """Log-probabilities of the model's own distribution: the token's, and the largest ones."""
    all_of_them = torch.log_softmax(logits.double(), dim=-1)
    values, ids = torch.topk(all_of_them, min(num_logprobs, logits.numel()))
    return TokenLogprobs(float(all_of_them[token]), ids.tolist(), values.tolist())


def _changed(logits: torch.Tensor, sampling: Sampling, so_far: Sofar) -> torch.Tensor:
    """Apply biases, exclude tokens that are not allowed yet, apply penalties and the mask: the protocol's order."""
    logits = logits.clone()
    if sampling.logit_bias:
        biases = torch.tensor(list(sampling.logit_bias.values()), dtype=logits.dtype)
        logits[torch.tensor(list(sampling.logit_bias))] += biases
    if so_far.num_chosen < sampling.min_tokens:
        logits[list(so_far.eos)] = -torch.inf
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(sorted({*so_far.prompt_ids, *so_far.counts}))
        values, factor = logits[seen], sampling.repetition_penalty
        logits[seen] = torch.where(values > 0, values / factor, values * factor)
    if so_far.counts and (sampling.presence_penalty or sampling.frequency_penalty):
        times = torch.tensor(list(so_far.counts.values()), dtype=logits.dtype)
        logits[torch.tensor(list(so_far.counts))] -= sampling.presence_penalty + sampling.frequency_penalty * times
    if so_far.allowed is not None:
        logits[torch.from_numpy(~so_far.allowed)] = -torch.inf
    return logits
