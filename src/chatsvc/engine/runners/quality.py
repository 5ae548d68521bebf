"""How much a runner's arithmetic costs: teacher-forced, token by token, against fp32 torch.

Both sides see the same text. At every position each says which token it would choose and how probable it holds the one
that is there. Top-1 agreement is how often the two choices are equal; perplexity is e to the mean of -log probability.
The candidate is asked through the pipeline that serves, with its KV cache's precision and its kernels.
Knows nothing about stores, settings or printing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_MAX_NUM_SEQS = 16
_CACHE_SIZE_GB = 1


@dataclass(frozen=True, slots=True)
class Forecast:
    """For every position of a window but the first: the id a model would choose, and log p of the one that is there."""

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
    """Cut a text's ids into windows of one size; the rest that does not fill one is left out."""
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
    """The reference: torch in fp32, eager, one forward pass a window. ``path`` is a safetensors folder or a GGUF file."""
    import torch  # noqa: PLC0415 - an extra; only this function needs it
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - needs torch

    where = {"gguf_file": path.name} if path.is_file() else {}
    folder = path.parent if path.is_file() else path
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True, **where).eval()
    forecasts = []
    for window in windows:
        with torch.inference_mode():
            logits = model(torch.tensor([window])).logits[0, :-1].float()
        log_probs = torch.log_softmax(logits, dim=-1)
        there = log_probs[torch.arange(len(window) - 1), torch.tensor(window[1:])]
        forecasts.append(Forecast(logits.argmax(dim=-1).tolist(), there.tolist()))
    return forecasts


def forecast_openvino(path: Path, windows: Sequence[Sequence[int]], properties: dict[str, object]) -> list[Forecast]:
    """The candidate: what OpenVINO's continuous batching says, compiled with these ``properties``."""
    log_probs = _prompt_log_probs(path, windows, properties)
    top_ids = _choices(path, windows, properties)
    return [Forecast(*pair) for pair in zip(top_ids, log_probs, strict=True)]


def _prompt_log_probs(
    path: Path, windows: Sequence[Sequence[int]], properties: dict[str, object]
) -> list[Sequence[float]]:
    """Log probabilities of the windows' own ids; no prefix cache, because cached positions are not computed again."""
    import openvino_genai  # noqa: PLC0415 - only the candidate's side needs it

    config = openvino_genai.GenerationConfig(max_new_tokens=1, echo=True, logprobs=1, ignore_eos=True)
    pipeline = _open(path, properties, prefix_caching=False)
    outputs = _generate(pipeline, windows, config)
    return [output.generated_log_probs[1 : len(window)] for output, window in zip(outputs, windows, strict=True)]


def _choices(path: Path, windows: Sequence[Sequence[int]], properties: dict[str, object]) -> list[Sequence[int]]:
    """The greedy next id after every prefix. The prefix cache makes each one a step over the last few tokens."""
    import openvino_genai  # noqa: PLC0415 - only the candidate's side needs it

    config = openvino_genai.GenerationConfig(max_new_tokens=1, ignore_eos=True)
    pipeline = _open(path, properties, prefix_caching=True)
    choices: list[Sequence[int]] = []
    for window in windows:
        prefixes = [window[:length] for length in range(1, len(window))]
        choices.append([output.generated_ids[0] for output in _generate(pipeline, prefixes, config)])
    return choices


def _generate(pipeline: Any, prompts: Sequence[Sequence[int]], config: Any) -> Iterator[Any]:
    """One output a prompt, in order; so many at a time as share a batch."""
    import openvino  # noqa: PLC0415 - only the candidate's side needs it

    for start in range(0, len(prompts), _MAX_NUM_SEQS):
        handles = [
            pipeline.add_request(number, openvino.Tensor(np.array([prompt], dtype=np.int64)), config)
            for number, prompt in enumerate(prompts[start : start + _MAX_NUM_SEQS])
        ]
        while pipeline.has_non_finished_requests():
            pipeline.step()
        for handle in handles:
            (output,) = handle.read().values()
            yield output


def _open(path: Path, properties: dict[str, object], *, prefix_caching: bool) -> Any:
    import openvino_genai  # noqa: PLC0415 - only the candidate's side needs it

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = _CACHE_SIZE_GB
    scheduler.max_num_seqs = _MAX_NUM_SEQS
    scheduler.max_num_batched_tokens = 4096
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = prefix_caching
    return openvino_genai.ContinuousBatchingPipeline(str(path), scheduler, "CPU", properties)
