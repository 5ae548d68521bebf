"""The runner interface: an inference library behind six calls. The loop owns it and calls it from one thread only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from chatsvc.engine.protocol import FinishReason, Sampling, TokenLogprobs
from chatsvc.engine.runners.grammars import Constraint
from chatsvc.models.card import ModelCard

# Sorting the whole vocabulary (150,000 entries) for one sequence would halve the speed of the whole batch.
MAX_TOP_K = 256


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """How a runner is set up; each runner ignores what does not apply to it.

    Attributes:
        kind: which runner; ``auto`` takes the fastest that serves this model here.
        max_num_seqs: sequences in a batch.
        cache_size_gb: memory for the KV cache.
        prefill_chunk_tokens: most prompt tokens in one step.
        max_gap_ms: how long a running sequence may wait for its next token when a long prompt joins.
        num_threads: 0 leaves the choice to the library.
        memory_limit_mb: of the whole process; the KV cache gets what the model leaves. 0: no limit.
        max_draft_tokens: of a draft that a pass checks while few sequences run; 0: no drafts.
        dynamic_quantization_group: activations that share a scale, in OpenVINO; larger is faster, less exact.
    """

    kind: Literal["auto", "native", "openvino", "torch"] = "auto"
    max_num_seqs: int = 16
    cache_size_gb: float = 1.0
    prefill_chunk_tokens: int = 256
    max_gap_ms: int = 220
    num_threads: int = 0
    memory_limit_mb: int = 0
    max_draft_tokens: int = 7
    dynamic_quantization_group: int = 32


class NotFinite(ArithmeticError):
    """A row's logits are NaN or infinite: its sequence ends with an error, the others continue."""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step produced for one sequence.

    ``token_ids`` are new ids without one that ended the sequence; ``num_generated`` counts that id too.
    ``finish_reason`` is None while the sequence continues. ``logprobs`` has one entry for each of ``token_ids`` where
    the sequence asked for them. ``refusal`` is as in :class:`chatsvc.engine.protocol.Finished`.
    """

    sequence_id: int
    token_ids: Sequence[int]
    num_generated: int
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0
    detail: str = ""
    refusal: str = ""
    logprobs: Sequence[TokenLogprobs] = ()


class Runner(Protocol):
    """An inference library. The constructor loads the model; call :meth:`warm_up` before serving."""

    card: ModelCard
    max_num_seqs: int

    def warm_up(self) -> None:
        """Run every batch size once, so that no request waits for first-time compilation."""

    def add(
        self,
        sequence_id: int,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        sharing_key: str,
        num_public: int = 0,
        constraint: Constraint | None = None,
    ) -> None:
        """Add a sequence; it joins at the next step.

        It may use the cache of the same ``sharing_key``; its first ``num_public`` ids are the public prompt
        prefix, which all keys share. ``constraint`` is that of ``sampling.grammar``.

        Raises:
            ValueError, RuntimeError: this sequence is refused; the others are not affected.
        """

    def cancel(self, sequence_id: int) -> None:
        """Forget a sequence; no output follows. Unknown ids are ignored."""

    def step(self) -> list[StepOutput]:
        """One forward pass over the running sequences (a chunk of prefill, or a token each). Empty when idle."""

    def rest(self) -> bool:
        """While no sequence runs, do some milliseconds of work in advance. False: nothing is left to do."""

    def cache_usage(self) -> float:
        """The share of the KV cache in use, 0 to 1."""
