"""The default runner: OpenVINO GenAI's continuous batching over GGUF files and converted directories.

``step()`` holds the GIL, which is why the engine is a process of its own with one thread. Knows no text: the pipeline's
own tokenizer is never asked, and the end-of-sequence ids come from the card.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from chatsvc.engine.memory import drop_file_mapping
from chatsvc.engine.protocol import FinishReason, Sampling
from chatsvc.engine.runners.base import RunnerOptions, StepOutput
from chatsvc.errors import OperatorError
from chatsvc.models.card import ModelCard
from chatsvc.models.quiet import import_openvino

_SEED_MASK = (1 << 64) - 1
_WARM_UP_PROMPT_TOKENS = 24


@dataclass(slots=True, eq=False)
class _Running:
    """A sequence inside the pipeline."""

    handle: Any
    eos_token_ids: frozenset[int]


class OpenVinoRunner:
    """A :class:`chatsvc.engine.runners.base.Runner`.

    Args:
        path: a ``.gguf`` file, or a directory with ``openvino_model.xml``.
        card: what the model is.
        options: sizes.

    Raises:
        OperatorError: OpenVINO cannot load it.
    """

    def __init__(self, path: Path, card: ModelCard, options: RunnerOptions) -> None:
        self.card = msgspec.structs.replace(card, runner="openvino")
        self.max_num_seqs = options.max_num_seqs
        self._chunk = options.prefill_chunk_tokens
        self._path = path
        self._eos = frozenset(card.eos_token_ids)
        self._running: dict[int, _Running] = {}
        self._openvino, self._genai = import_openvino()
        self._pipeline = _open(self._genai, path, options)

    def warm_up(self) -> None:
        """Run a full prefill chunk, then batches of every size from the largest down to one."""
        greedy = Sampling(max_tokens=2, temperature=0)
        self._run_to_end([(list(range(1, self._chunk + 1)), greedy)])
        self._run_to_end(
            [
                ([number + 1] * _WARM_UP_PROMPT_TOKENS, Sampling(max_tokens=number + 2, temperature=0))
                for number in range(self.max_num_seqs)
            ]
        )
        drop_file_mapping(self._path)  # the weights were repacked in the first inference

    def add(self, sequence_id: int, prompt_ids: Sequence[int], sampling: Sampling, sharing_key: str) -> None:
        """Take a sequence in."""
        del sharing_key
        self._add(sequence_id, prompt_ids, sampling, self._eos)

    def cancel(self, sequence_id: int) -> None:
        """Forget a sequence."""
        running = self._running.pop(sequence_id, None)
        if running is None:
            return
        running.handle.cancel()
        if not self._running:
            self._pipeline.step()  # frees its cache; with others running the next step does that

    def step(self) -> list[StepOutput]:
        """One step of the pipeline and what every sequence got from it."""
        if not self._running:
            return []
        self._pipeline.step()
        outputs = [
            output for number, running in self._running.items() if (output := _read(number, running)) is not None
        ]
        for output in outputs:
            if output.finish_reason is not None:
                del self._running[output.sequence_id]
        return outputs

    def cache_usage(self) -> float:
        """The pipeline's own figure."""
        return float(self._pipeline.get_metrics().cache_usage) / 100

    def _add(self, number: int, prompt_ids: Sequence[int], sampling: Sampling, eos: frozenset[int]) -> None:
        tensor = self._openvino.Tensor(np.array([prompt_ids], dtype=np.int64))
        handle = self._pipeline.add_request(number, tensor, _configure(self._genai.GenerationConfig(), sampling, eos))
        self._running[number] = _Running(handle, eos)

    def _run_to_end(self, work: Sequence[tuple[Sequence[int], Sampling]]) -> None:
        for number, (prompt_ids, sampling) in enumerate(work):
            self._add(number, prompt_ids, sampling, frozenset())
        while self._running:
            self.step()


def _open(genai: Any, path: Path, options: RunnerOptions) -> Any:
    """The pipeline over the weights at ``path``."""
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = max(1, round(options.cache_size_gb))
    scheduler.max_num_seqs = options.max_num_seqs
    scheduler.max_num_batched_tokens = max(options.prefill_chunk_tokens, options.max_num_seqs)
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = True
    properties: dict[str, object] = {}
    if options.num_threads:
        properties["INFERENCE_NUM_THREADS"] = options.num_threads
    try:
        return genai.ContinuousBatchingPipeline(str(path), scheduler, "CPU", properties)
    except (RuntimeError, ValueError) as error:
        raise OperatorError(f"OpenVINO cannot load {path.name}: {_first_line(error)}") from error


def _configure(config: Any, sampling: Sampling, eos: frozenset[int]) -> Any:
    config.max_new_tokens = sampling.max_tokens
    config.ignore_eos = not eos
    if eos:
        config.eos_token_id = min(eos)
        config.stop_token_ids = set(eos)
    config.presence_penalty = sampling.presence_penalty
    config.frequency_penalty = sampling.frequency_penalty
    if sampling.temperature > 0:
        config.do_sample = True
        config.temperature = sampling.temperature
        config.top_p = sampling.top_p
        config.top_k = sampling.top_k
        seed = sampling.seed if sampling.seed is not None else secrets.randbits(64)
        config.rng_seed = seed & _SEED_MASK
    config.validate()
    return config


def _read(number: int, running: _Running) -> StepOutput | None:
    """What is new of one sequence; None if nothing is."""
    ids: list[int] = []
    reason: FinishReason | None = None
    while running.handle.can_read():
        for output in running.handle.read().values():
            ids.extend(output.generated_ids)
            reason = _FINISH_REASONS.get(output.finish_reason.name, reason)
    if reason is None and running.handle.get_status().name == "IGNORED":
        return StepOutput(number, ids, len(ids), "error", detail="the KV cache is too small for this sequence")
    if not ids and reason is None:
        return None
    visible = ids[:-1] if ids and ids[-1] in running.eos_token_ids else ids
    return StepOutput(number, visible, len(ids), reason)


_FINISH_REASONS: dict[str, FinishReason] = {"STOP": "stop", "LENGTH": "length"}


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
