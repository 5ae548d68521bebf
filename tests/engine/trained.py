"""Tiny models that have learnt to repeat what stood sixteen tokens before, in transformers' classes and as GGUF files.

The next token follows from positions alone, so a rotary embedding that is computed otherwise gives other tokens. The
right token's logit is far above the others, so rounding to int8 does not change the order, as it does with random
weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.engine.families import write_gguf
from tests.shapes import trained_tokenizer

_PERIOD, _LENGTH, _PROMPT = 16, 40, 24  # tokens: a text repeats after its period; a part of it is the prompt
_NUM_SYMBOLS = 24
_TEXTS, _MOST_STEPS, _LEARNING_RATE = 8, 400, 3e-3
# How far the right token's logit must be above the next. Logits differ by about 1.3 (their standard deviation), and int8
# moves one by about a hundredth of that.
_CLEAR = 2.0

TOKENIZER = trained_tokenizer(300)
_CONTEXT = 128
SHAPE: dict[str, Any] = {
    "vocab_size": TOKENIZER.get_vocab_size(),
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": _CONTEXT,
    "tie_word_embeddings": False,
}
SCALINGS: dict[str, dict[str, Any]] = {
    "plain": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
}
BASE = 10_000.0


def _texts(count: int, random: torch.Generator) -> torch.Tensor:
    periods = torch.randint(0, _NUM_SYMBOLS, (count, _PERIOD), generator=random)
    return periods.repeat(1, -(-_LENGTH // _PERIOD))[:, :_LENGTH]


_ASKED = _texts(4, torch.Generator().manual_seed(2))
PROMPTS: list[list[int]] = _ASKED[:, :_PROMPT].tolist()
ANSWERS: list[list[int]] = _ASKED[:, _PROMPT:].tolist()  # 16 tokens each


def new_model(name: str, scaling: str) -> Any:
    """A model of random weights: ``llama``, ``llama-biases`` (of queries, keys and values), ``qwen2`` or ``qwen3``."""
    shape = {**SHAPE, "rope_parameters": {"rope_theta": BASE, **SCALINGS[scaling]}}
    if name.startswith("llama"):
        return LlamaForCausalLM(LlamaConfig(**shape, attention_bias=name == "llama-biases"))
    return Qwen2ForCausalLM(Qwen2Config(**shape)) if name == "qwen2" else Qwen3ForCausalLM(Qwen3Config(**shape))


def train(name: str, scaling: str) -> Any:
    """The model, when it knows what comes next; the same one each time. Takes half a second of one core."""
    torch.manual_seed(1)
    random = torch.Generator().manual_seed(1)
    model = new_model(name, scaling)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0)
    for _ in range(_MOST_STEPS):
        ids = _texts(_TEXTS, random)
        logits, following = model(ids).logits[:, _PERIOD - 1 : -1], ids[:, _PERIOD:]
        if _least_gap(logits.detach(), following) > _CLEAR and _is_clear(model):
            return model.eval()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), following.flatten()).backward()
        optimizer.step()
    raise AssertionError(f"{name} with {scaling} has not learnt it in {_MOST_STEPS} steps")


def _is_clear(model: Any) -> bool:
    """What is going to be asked for has one answer, even for arithmetic that is not exact."""
    with torch.inference_mode():
        logits = model(_ASKED).logits[:, _PROMPT - 1 : -1]
    return _least_gap(logits, _ASKED[:, _PROMPT:]) > _CLEAR


def _least_gap(logits: torch.Tensor, right: torch.Tensor) -> float:
    """How far the logits of the right tokens are above all others; below zero where another one is chosen."""
    others = logits.scatter(-1, right[..., None], -torch.inf).amax(-1)
    return float((logits.gather(-1, right[..., None])[..., 0] - others).min())


def with_weights(name: str, scaling: str, state: Mapping[str, torch.Tensor]) -> Any:
    """A model with the weights of another one; biases that are not there are zero."""
    model = new_model(name, scaling).eval()
    zeros = {key: torch.zeros_like(value) for key, value in model.state_dict().items() if key.endswith("bias")}
    model.load_state_dict({**zeros, **state})
    return model


def generated(model: Any) -> list[list[int]]:
    """What transformers says after each of the prompts."""
    ids = torch.tensor(PROMPTS)
    model.generation_config.eos_token_id = None
    with torch.inference_mode():
        whole = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=len(ANSWERS[0]), do_sample=False
        )
    return [one[_PROMPT:] for one in whole.tolist()]


@dataclass(frozen=True)
class Files:
    """A model as it is served."""

    safetensors: Path
    gguf: Path


def write(folder: Path, name: str, scaling: str, model: Any) -> Files:
    """The model in both formats; the GGUF file as llama.cpp converts it."""
    files = Files(folder / "model", folder / "model.gguf")
    model.save_pretrained(files.safetensors)
    kept = {key: value for key, value in model.state_dict().items() if not key.endswith("o_proj.bias")}  # they are zero
    write_gguf(files.gguf, model, TOKENIZER, state=kept, is_half=True)
    return files
