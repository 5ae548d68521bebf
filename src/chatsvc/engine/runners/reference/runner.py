"""The reference runner: torch and transformers, continuous batching in float32.

A sequence's results do not depend on what shares its batch, to the last bit (``model.py`` says how). So it is the
reference for the fast runners, and it serves processors that they do not. Safetensors only; nothing is fetched, and
code that comes with a model is never run.
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
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from chatsvc.engine.protocol import NOT_FINITE, FinishReason, Sampling
from chatsvc.engine.runners.base import NotFinite, RunnerOptions, StepOutput
from chatsvc.engine.runners.grammars import Constraint
from chatsvc.engine.runners.masks import is_allowed
from chatsvc.engine.runners.reference.model import depends_on_length, model_for
from chatsvc.engine.runners.reference.sampling import Sofar, choose_token, logprobs_of
from chatsvc.errors import OperatorError
from chatsvc.models.card import ModelCard

_SEED_MASK = (1 << 63) - 1
# A step of this runner takes about a second for 256 prompt tokens; chunks have one size, because results depend on
# their shape.
_MAX_CHUNK_TOKENS = 64
_MAX_NAMES_SHOWN = 3


@dataclass(slots=True, eq=False)
class _Sequence:
    """A sequence and its state. ``pending_ids`` have not been processed yet."""

    prompt_ids: frozenset[int]
    pending_ids: list[int]
    sampling: Sampling
    generator: torch.Generator
    cache: Any
    constraint: Constraint | None = None
    counts: Counter[int] = field(default_factory=Counter)
    num_held: int = 0
    num_generated: int = 0

    @property
    def is_prefilling(self) -> bool:
        return self.num_generated == 0


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
        self._chunk = min(options.prefill_chunk_tokens, _MAX_CHUNK_TOKENS)
        self._eos = frozenset(card.eos_token_ids)
        self._sequences: dict[int, _Sequence] = {}
        if options.num_threads:
            torch.set_num_threads(options.num_threads)
        loaded = _load(path)
        self._num_embeddings = int(loaded.get_input_embeddings().num_embeddings)
        self._model = model_for(loaded, max_num_seqs=options.max_num_seqs)

    def warm_up(self) -> None:
        """One short sequence; there is nothing to compile."""
        self.add(0, [1, 2, 3], Sampling(max_tokens=2, temperature=0), "")
        while self._sequences:
            self.step()

    def add(
        self,
        sequence_id: int,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        sharing_key: str,
        num_public: int = 0,
        constraint: Constraint | None = None,
    ) -> None:
        """Add a sequence."""
        del sharing_key, num_public  # nothing is shared
        if not prompt_ids or not 0 <= min(prompt_ids) <= max(prompt_ids) < self._num_embeddings:
            raise ValueError("a prompt needs at least one id, and all must be in the model's vocabulary")
        if any(not 0 <= token < self._num_embeddings for token in sampling.logit_bias):
            raise ValueError("logit_bias names an id outside the model's vocabulary")
        seed = sampling.seed if sampling.seed is not None else secrets.randbits(63)
        generator = torch.Generator().manual_seed(seed & _SEED_MASK)
        self._sequences[sequence_id] = _Sequence(
            frozenset(prompt_ids), list(prompt_ids), sampling, generator, self._model.new_cache(), constraint
        )

    def cancel(self, sequence_id: int) -> None:
        """Forget a sequence."""
        self._sequences.pop(sequence_id, None)

    def step(self) -> list[StepOutput]:
        """A token for every sequence whose prompt is done, and a chunk for the first whose prompt is not."""
        with torch.inference_mode():
            decoding = [item for item in self._sequences.items() if not item[1].is_prefilling]
            outputs = self._decode(decoding) + self._prefill()
        for output in outputs:
            if output.finish_reason is not None:
                del self._sequences[output.sequence_id]
        return outputs

    def rest(self) -> bool:
        """There is nothing to do in advance."""
        return False

    def cache_usage(self) -> float:
        """Tokens held, as a share of what all sequences could hold."""
        held = sum(sequence.num_held for sequence in self._sequences.values())
        return held / (self.max_num_seqs * self.card.context_length)

    def _decode(self, decoding: Sequence[tuple[int, _Sequence]]) -> list[StepOutput]:
        if not decoding:
            return []
        ids = [sequence.pending_ids[0] for _, sequence in decoding]
        logits = self._model.decode(ids, [sequence.cache for _, sequence in decoding])
        return [self._choose(*item, row) for item, row in zip(decoding, logits, strict=True)]

    def _prefill(self) -> list[StepOutput]:
        """Chunks begin at multiples of their size, whatever else runs, until the step's budget is used up."""
        outputs = []
        budget = self._chunk
        for sequence_id, sequence in self._sequences.items():
            if budget <= 0:
                break
            if sequence.is_prefilling:
                ids, rest = sequence.pending_ids[: self._chunk], sequence.pending_ids[self._chunk :]
                logits = self._model.prefill(ids, sequence.cache)
                sequence.pending_ids = rest
                sequence.num_held += len(ids)
                budget -= len(ids)
                if not rest:
                    outputs.append(self._choose(sequence_id, sequence, logits))
        return outputs

    def _choose(self, sequence_id: int, sequence: _Sequence, logits: torch.Tensor) -> StepOutput:
        sampling = sequence.sampling
        constraint = sequence.constraint
        allowed = None if constraint is None else is_allowed(constraint.masks([])[0], len(logits))
        so_far = Sofar(sequence.counts, sequence.prompt_ids, sequence.num_generated, self._eos, allowed)
        try:
            token = choose_token(logits, sampling, so_far, sequence.generator)
        except NotFinite:
            refusal = constraint.failure if constraint is not None else ""
            return StepOutput(sequence_id, (), 0, "error", detail="" if refusal else NOT_FINITE, refusal=refusal)
        sequence.num_held += not sequence.is_prefilling
        sequence.counts[token] += 1
        sequence.num_generated += 1
        sequence.pending_ids = [token]
        reason: FinishReason | None = None
        if token in self._eos and not sampling.ignore_eos:
            return StepOutput(sequence_id, (), 1, "stop")
        if constraint is not None:
            constraint.advance(token)
        if sequence.num_generated >= sampling.max_tokens:
            reason = "length"
        wanted = sampling.num_logprobs
        logprobs = [] if wanted is None else [logprobs_of(logits, token, wanted)]
        return StepOutput(sequence_id, [token], 1, reason, logprobs=logprobs)


def _load(path: Path) -> Any:
    disable_progress_bar()  # no progress bars: the log is read by machines
    try:
        model, told = AutoModelForCausalLM.from_pretrained(
            path,
            output_loading_info=True,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise OperatorError(f"transformers cannot load the model: {error}") from error
    if told["missing_keys"]:  # transformers would initialise them randomly
        names = ", ".join(sorted(told["missing_keys"])[:_MAX_NAMES_SHOWN])
        raise OperatorError(f"the model's files lack weights that its config.json asks for ({names}); use another copy")
    if depends_on_length(model.config):
        raise OperatorError(
            "no runner serves a rotary position embedding scaled by longrope; use a variant of the model with a "
            "shorter context"
        )
    return model.eval()
