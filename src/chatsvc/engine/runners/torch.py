"""The reference runner: torch and transformers, float32, exact. The truth that the fast runner is compared with.

Each sequence has a cache and a forward pass of its own, so what shares the batch cannot change a token. Safetensors
only, nothing is fetched, and code that comes with a model is never run.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from chatsvc.engine.protocol import FinishReason, Sampling
from chatsvc.engine.runners.base import RunnerOptions, StepOutput
from chatsvc.engine.runners.sampling import choose_token
from chatsvc.errors import OperatorError
from chatsvc.models.card import ModelCard

_SEED_MASK = (1 << 63) - 1


@dataclass(slots=True, eq=False)
class _Sequence:
    """A sequence and its state. ``pending_ids`` have not been through the model yet."""

    pending_ids: list[int]
    sampling: Sampling
    generator: torch.Generator
    cache: DynamicCache = field(default_factory=DynamicCache)
    counts: Counter[int] = field(default_factory=Counter)
    num_generated: int = 0


class TorchRunner:
    """A :class:`chatsvc.engine.runners.base.Runner`.

    Args:
        path: a directory with ``config.json`` and ``model.safetensors``.
        card: what the model is.
        options: sizes.

    Raises:
        OperatorError: it cannot be loaded.
    """

    def __init__(self, path: Path, card: ModelCard, options: RunnerOptions) -> None:
        self.card = msgspec.structs.replace(card, runner="torch")
        self.max_num_seqs = options.max_num_seqs
        self._chunk = options.prefill_chunk_tokens
        self._eos = frozenset(card.eos_token_ids)
        self._sequences: dict[int, _Sequence] = {}
        if options.num_threads:
            torch.set_num_threads(options.num_threads)
        self._model = _open(path)

    def warm_up(self) -> None:
        """One short sequence; there is nothing to compile."""
        self.add(0, [1, 2, 3], Sampling(max_tokens=2, temperature=0), "")
        while self._sequences:
            self.step()

    def add(self, sequence_id: int, prompt_ids: Sequence[int], sampling: Sampling, sharing_key: str) -> None:
        """Take a sequence in."""
        del sharing_key  # nothing is shared
        num_embeddings = self._model.get_input_embeddings().num_embeddings
        if not prompt_ids or not 0 <= min(prompt_ids) <= max(prompt_ids) < num_embeddings:
            raise ValueError("a prompt holds at least one id, all of the model's vocabulary")
        seed = sampling.seed if sampling.seed is not None else secrets.randbits(63)
        generator = torch.Generator().manual_seed(seed & _SEED_MASK)
        self._sequences[sequence_id] = _Sequence(list(prompt_ids), sampling, generator)

    def cancel(self, sequence_id: int) -> None:
        """Forget a sequence."""
        self._sequences.pop(sequence_id, None)

    def step(self) -> list[StepOutput]:
        """A chunk of prefill or a token for every sequence."""
        with torch.inference_mode():
            outputs = [
                output
                for sequence_id, sequence in self._sequences.items()
                if (output := self._advance(sequence_id, sequence)) is not None
            ]
        for output in outputs:
            if output.finish_reason is not None:
                del self._sequences[output.sequence_id]
        return outputs

    def cache_usage(self) -> float:
        """Tokens held, as a share of what all sequences could hold."""
        held = sum(sequence.cache.get_seq_length() for sequence in self._sequences.values())
        return float(held) / (self.max_num_seqs * self.card.context_length)

    def _advance(self, sequence_id: int, sequence: _Sequence) -> StepOutput | None:
        ids, sequence.pending_ids = sequence.pending_ids[: self._chunk], sequence.pending_ids[self._chunk :]
        is_last = not sequence.pending_ids
        logits = self._model(
            input_ids=torch.tensor([ids]), past_key_values=sequence.cache, use_cache=True, logits_to_keep=1
        ).logits[0, -1]
        if not is_last:
            return None
        token = choose_token(logits.float(), sequence.sampling, sequence.counts, sequence.generator)
        sequence.counts[token] += 1
        sequence.num_generated += 1
        sequence.pending_ids = [token]
        reason: FinishReason | None = None
        if token in self._eos:
            reason = "stop"
        elif sequence.num_generated >= sequence.sampling.max_tokens:
            reason = "length"
        return StepOutput(sequence_id, [] if reason == "stop" else [token], 1, reason)


def _open(path: Path) -> Any:
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise OperatorError(f"transformers cannot load the model: {error}") from error
    return model.eval()
