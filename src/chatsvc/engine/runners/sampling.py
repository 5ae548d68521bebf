"""Choosing a token from logits, for runners that do it themselves. Knows no model."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from chatsvc.engine.protocol import Sampling
from chatsvc.engine.runners.base import MAX_TOP_K


def choose_token(
    logits: torch.Tensor, sampling: Sampling, counts: Mapping[int, int], generator: torch.Generator
) -> int:
    """The next token id.

    Args:
        logits: of one position, shape (vocabulary,), float32.
        sampling: how to choose.
        counts: how often each id was generated already, for the penalties.
        generator: the sequence's own source of randomness.
    """
    logits = _penalised(logits, sampling, counts)
    if sampling.temperature == 0 or sampling.top_k == 1:
        return int(torch.argmax(logits))
    top_k = min(sampling.top_k if sampling.top_k > 0 else MAX_TOP_K, MAX_TOP_K, logits.numel())
    values, ids = torch.topk(logits, top_k)  # sorted, largest first
    probabilities = torch.softmax(values / sampling.temperature, dim=-1)
    before = torch.cumsum(probabilities, dim=-1) - probabilities
    probabilities = torch.where(before < sampling.top_p, probabilities, 0.0)
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])


def _penalised(logits: torch.Tensor, sampling: Sampling, counts: Mapping[int, int]) -> torch.Tensor:
    if not counts or (sampling.presence_penalty == 0 and sampling.frequency_penalty == 0):
        return logits
    logits = logits.clone()
    ids = torch.tensor(list(counts))
    times = torch.tensor(list(counts.values()), dtype=logits.dtype)
    logits[ids] -= sampling.presence_penalty + sampling.frequency_penalty * times
    return logits
