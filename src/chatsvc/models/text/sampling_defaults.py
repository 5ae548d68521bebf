"""The sampling values that a model's authors recommend: from ``generation_config.json``, or a GGUF file's metadata.

They apply where a request gives none; the configuration's apply where these are missing. Invalid values are ignored,
and so is ``do_sample``, as in vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from chatsvc.models.card import SamplingDefaults

_IS_VALID: dict[str, Callable[[float], bool]] = {
    "temperature": lambda value: 0 < value <= 2,
    "top_p": lambda value: 0 < value <= 1,
    "top_k": lambda value: value >= 0,
    "min_p": lambda value: 0 <= value <= 1,
    "repetition_penalty": lambda value: 0 < value <= 10,
}
_GGUF_NAMES = {"temperature": "temp", "repetition_penalty": "penalty_repeat"}


def from_generation_config(config: Mapping[str, Any]) -> SamplingDefaults:
    """Read transformers' file."""
    return SamplingDefaults(
        temperature=_number(config, "temperature"),
        top_p=_number(config, "top_p"),
        top_k=_whole(_number(config, "top_k")),
        min_p=_number(config, "min_p"),
        repetition_penalty=_number(config, "repetition_penalty"),
    )


def from_gguf(metadata: Mapping[str, Any]) -> SamplingDefaults:
    """Read the keys ``general.sampling.…``, as llama.cpp's converter writes them."""
    return from_generation_config(
        {name: metadata.get(f"general.sampling.{_GGUF_NAMES.get(name, name)}") for name in _IS_VALID}
    )


def _number(config: Mapping[str, Any], name: str) -> float | None:
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if _IS_VALID[name](value) else None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
