"""Measures how much accuracy a runner's arithmetic costs: teacher-forced, token by token, against fp32 torch.

Both sides see the same text. At every position each gives the token it would choose and the probability of the actual
token. Top-1 agreement is how often the two choices are equal; perplexity is e to the mean of -log probability.
The candidate runs as it is served, with the same kernels and KV cache precision.
Knows nothing about stores, settings or printing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatsvc.engine.runners.base import RunnerOptions
from chatsvc.engine.runners.openvino.pipeline import serving_properties
from chatsvc.models.supply.telemetry import import_openvino, refuse_telemetry

_CACHE_SIZE_GB = 1
_MAX_NUM_BATCHED_TOKENS = 2048
_NATIVE_CHUNK_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Forecast:
    """For every position of a window but the first: the id that a model would choose, and log p of the actual id."""

    top_ids: Sequence[int]
    log_probs: Sequence[float]


@dataclass(frozen=True, slots=True)
class Quality:
    """A candidate beside its reference."""

    num_tokens: int
    agreement: float
    perplexity: float
    reference_perplexity: float


def windows_of(ids: Sequence[int], size: int) -> list[list[int]]:
    """Cut a text's ids into windows of one size; an incomplete last window is dropped."""
    return [list(ids[start : start + size]) for start in range(0, len(ids) - size + 1, size)]


def compare(reference: Sequence[Forecast], candidate: Sequence[Forecast]) -> Quality:
    """Agreement over all positions of all windows, and both perplexities."""
    pairs = list(zip(reference, candidate, strict=True))
    equal = [ours == theirs for one, other in pairs for ours, theirs in zip(one.top_ids, other.top_ids, strict=True)]
    return Quality(
        num_tokens=len(equal),
        agreement=sum(equal) / len(equal),
        perplexity=_perplexity(candidate),
        reference_perplexity=_perplexity(reference),
    )


def _perplexity(forecasts: Sequence[Forecast]) -> float:
    log_probs = [value for forecast in forecasts for value in forecast.log_probs]
    return math.exp(-sum(log_probs) / len(log_probs))


def forecast_fp32(path: Path, windows: Sequence[Sequence[int]]) -> list[Forecast]:
    """The reference: torch in fp32, one forward pass a window. ``path`` is a safetensors folder or a GGUF file."""
    import torch  # noqa: PLC0415 - an extra; only where it is needed

    model = _load_fp32(path)
    forecasts = []
    for window in windows:
        with torch.inference_mode():
            logits = model(torch.tensor([window])).logits[0, :-1]
        forecasts.append(_forecast(logits.numpy(), window))
    return forecasts


def forecast_torch(path: Path, windows: Sequence[Sequence[int]]) -> list[Forecast]:
    """The candidate: the torch runner's own forward pass, token by token as in decoding."""
    import torch  # noqa: PLC0415 - an extra; only where it is needed

    from chatsvc.engine.runners.reference.model import model_for  # noqa: PLC0415 - needs torch

    model = model_for(_load_fp32(path), max_num_seqs=1)
    forecasts = []
    for window in windows:
        cache = model.new_cache()
        with torch.inference_mode():
            logits = torch.stack([model.prefill([token], cache) for token in window[:-1]])
        forecasts.append(_forecast(logits.numpy(), window))
    return forecasts


def _load_fp32(path: Path) -> Any:
    refuse_telemetry()
    import torch  # noqa: PLC0415 - an extra; only where it is needed
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - needs torch

    where = {"gguf_file": path.name} if path.is_file() else {}
    folder = path.parent if path.is_file() else path
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True, **where).eval()


def forecast_native(path: Path, windows: Sequence[Sequence[int]]) -> list[Forecast]:
    """The candidate: our own forward pass, in chunks through its KV cache, like a prompt."""
    from chatsvc.engine.runners.native.filling import fill  # noqa: PLC0415 - only where it serves
    from chatsvc.engine.runners.native.library import PAGE_TOKENS, Capacity, Model, Rows  # noqa: PLC0415 - only there
    from chatsvc.engine.runners.native.weights import open_weights  # noqa: PLC0415 - only where it serves

    weights = open_weights(path)
    longest = max(len(window) for window in windows)
    pages = list(range(-(-longest // PAGE_TOKENS)))
    num_threads = len(os.sched_getaffinity(0))
    model = Model(weights.shape, Capacity(longest, _NATIVE_CHUNK_TOKENS, len(pages), num_threads))
    fill(model, weights)
    forecasts = []
    for window in windows:
        starts = range(0, len(window) - 1, _NATIVE_CHUNK_TOKENS)
        chunks = [Rows(window[:-1][start : start + _NATIVE_CHUNK_TOKENS], start, pages) for start in starts]
        logits = [model.forward([rows], range(len(rows.ids))).copy() for rows in chunks]
        forecasts.append(_forecast(np.concatenate(logits), window))
    return forecasts


def _forecast(logits: NDArray[np.float32], window: Sequence[int]) -> Forecast:
    """From the logits behind every token of a window but the last, (tokens - 1, vocabulary).

    Computed in float32, half the memory of float64, with sums in float64: accurate to a few millionths.
    """
    lowered = logits - logits.max(axis=1, keepdims=True)
    there = lowered[np.arange(len(lowered)), window[1:]] - np.log(np.exp(lowered).sum(axis=1, dtype=np.float64))
    return Forecast(lowered.argmax(axis=1).tolist(), there.tolist())


def forecast_openvino(path: Path, windows: Sequence[Sequence[int]], properties: Mapping[str, object]) -> list[Forecast]:
    """The candidate: OpenVINO's continuous batching, compiled with these ``properties``.

    Every prefix is a request for one token, one after the other: with the prefix cache each is a step over the last few
    tokens, as in serving. (Prefixes of one text in one batch gave other results than each computed alone:
    0.77 of 199 choices were equal.) The probabilities need every position computed, so no prefix cache.
    """
    _, openvino_genai = import_openvino()
    choosing, echoing = _open(path, properties, prefix_caching=True), _open(path, properties, prefix_caching=False)
    choose = openvino_genai.GenerationConfig(max_new_tokens=1, ignore_eos=True)
    echo = openvino_genai.GenerationConfig(max_new_tokens=1, ignore_eos=True, echo=True, logprobs=1)
    forecasts = []
    for window in windows:
        prefixes = [window[:length] for length in range(1, len(window))]
        top_ids = [_generate(choosing, prefix, choose).generated_ids[0] for prefix in prefixes]
        whole = _generate(echoing, window, echo)
        forecasts.append(Forecast(top_ids, whole.generated_log_probs[1 : len(window)]))
    return forecasts


def _generate(pipeline: Any, prompt: Sequence[int], config: Any) -> Any:
    """The output of one request."""
    openvino, _ = import_openvino()
    handle = pipeline.add_request(0, openvino.Tensor(np.array([prompt], dtype=np.int64)), config)
    while pipeline.has_non_finished_requests():
        pipeline.step()
    (output,) = handle.read().values()
    return output


def _open(path: Path, properties: Mapping[str, object], *, prefix_caching: bool) -> Any:
    _, openvino_genai = import_openvino()
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = _CACHE_SIZE_GB
    scheduler.max_num_batched_tokens = _MAX_NUM_BATCHED_TOKENS
    scheduler.enable_prefix_caching = prefix_caching
    as_served = serving_properties(path, RunnerOptions())
    return openvino_genai.ContinuousBatchingPipeline(str(path), scheduler, "CPU", {**as_served, **properties})
