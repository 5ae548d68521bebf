"""A wrapper of OpenVINO GenAI's pipeline with our settings and types. Knows nothing about principals.

The Python type of a request's handle is not exported by name, hence ``Any``.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chatsvc.engine.protocol import FinishReason, Sampling
from chatsvc.engine.runners.base import MAX_TOP_K, RunnerOptions
from chatsvc.engine.runners.sizing import value_bits_of
from chatsvc.errors import OperatorError
from chatsvc.models.supply.telemetry import import_openvino

# The library's sampler supports no biases, and reports one log-probability, of the changed logits.
UNSUPPORTED = ("logit_bias", "logprobs", "response_format")
# The library refuses 1, which would keep only the most probable token; this has the same effect.
_MOST_MIN_P = 0.9999
_SEED_MASK = (1 << 64) - 1
_FINISH_REASONS: dict[str, FinishReason] = {"STOP": "stop", "LENGTH": "length"}


class Request:
    """A sequence inside the pipeline."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def read(self) -> tuple[list[int], FinishReason | None]:
        """New ids, an end-of-sequence id among them, and how it ended (``error``: the cache is too small for it)."""
        ids: list[int] = []
        reason: FinishReason | None = None
        while self._handle.can_read():
            for output in self._handle.read().values():
                ids.extend(output.generated_ids)
                reason = _FINISH_REASONS.get(output.finish_reason.name, reason)
        if reason is None and self._handle.get_status().name == "IGNORED":
            reason = "error"
        return ids, reason

    def cancel(self) -> None:
        """Stop it; the pipeline frees its cache in the next step."""
        self._handle.cancel()


class Pipeline:
    """The pipeline over the weights at ``path``.

    Raises:
        OperatorError: OpenVINO cannot load it.
    """

    def __init__(self, path: Path, num_kv_blocks: int, options: RunnerOptions) -> None:
        self._openvino, self._genai = import_openvino()
        scheduler = self._genai.SchedulerConfig()
        scheduler.num_kv_blocks = num_kv_blocks
        scheduler.max_num_seqs = options.max_num_seqs
        scheduler.max_num_batched_tokens = options.prefill_chunk_tokens + options.max_num_seqs
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = True
        try:
            self._pipeline = self._genai.ContinuousBatchingPipeline(
                str(path), scheduler, "CPU", serving_properties(path, options)
            )
        except (RuntimeError, ValueError) as error:
            raise OperatorError(f"OpenVINO cannot load {path.name}: {_first_line(error)}") from error
        self._next_number = 0

    def configuration(self, sampling: Sampling, eos_token_ids: frozenset[int] = frozenset()) -> Any:
        """The library's sampling parameters; without end-of-sequence ids a request runs to its length.

        Raises:
            RuntimeError, TypeError: a value that the library refuses.
        """
        config = self._genai.GenerationConfig()
        _configure(config, sampling, eos_token_ids)
        return config

    def submit(self, prompt_ids: Sequence[int], configuration: Any) -> Request:
        """Add a request.

        Raises:
            RuntimeError: the library refuses it.
        """
        tensor = self._openvino.Tensor(np.array([prompt_ids], dtype=np.int64))
        self._next_number += 1
        return Request(self._pipeline.add_request(self._next_number, tensor, configuration))

    def step(self) -> None:
        """One step over all requests."""
        self._pipeline.step()

    def cache_usage(self) -> float:
        """The share of the KV cache that live sequences hold."""
        return float(self._pipeline.get_metrics().cache_usage) / 100


def serving_properties(path: Path, options: RunnerOptions) -> dict[str, object]:
    """The library's properties for the model at ``path``; the quality measurement uses the same."""
    # As the sizing counts: a converted model may ask for two bytes a number, and int4 ones did.
    properties: dict[str, object] = {"KV_CACHE_PRECISION": "u8", "VALUE_CACHE_PRECISION": f"u{value_bits_of(path)}"}
    if path.is_dir():  # weights of a GGUF file have groups of 32 of their own, which larger ones do not fit
        properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = options.dynamic_quantization_group
    if options.num_threads:
        properties["INFERENCE_NUM_THREADS"] = options.num_threads
    # OpenVINO computes in bfloat16 wherever the processor supports it. On top of int8 that costs answers (the embedded
    # model forgot the capital of France), and ties between logits become common: then greedy and top_k=1 give different
    # answers.
    properties["INFERENCE_PRECISION_HINT"] = "f32"
    return properties


def _configure(config: Any, sampling: Sampling, eos_token_ids: frozenset[int]) -> None:
    config.max_new_tokens = sampling.max_tokens
    config.ignore_eos = sampling.ignore_eos or not eos_token_ids
    config.min_new_tokens = sampling.min_tokens
    if eos_token_ids:
        config.eos_token_id = min(eos_token_ids)
        config.stop_token_ids = set(eos_token_ids)
    config.repetition_penalty = sampling.repetition_penalty
    config.presence_penalty = sampling.presence_penalty
    config.frequency_penalty = sampling.frequency_penalty
    if sampling.temperature > 0:
        config.do_sample = True
        config.temperature = sampling.temperature
        config.top_p = sampling.top_p
        config.min_p = min(sampling.min_p, _MOST_MIN_P)
        config.top_k = min(sampling.top_k, MAX_TOP_K) if sampling.top_k > 0 else MAX_TOP_K
        seed = sampling.seed if sampling.seed is not None else secrets.randbits(64)
        config.rng_seed = seed & _SEED_MASK
    config.validate()


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
