"""The frequencies of a rotary position embedding, plain or scaled, as a table.

Pair ``i`` of a head is rotated by ``position * frequencies[i]`` radians; cosine and sine are multiplied by
``attention_factor``. Computed in float32 in the order of transformers' ``modeling_rope_utils.py``, the reference in
the tests. Sources: linear (Chen et al., arXiv 2306.15595), YaRN (Peng et al., arXiv 2309.00071), Llama 3.1's
reference code, and llama.cpp for the metadata of GGUF files. Knows nothing about files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatsvc.errors import OperatorError

DEFAULT_BASE = 10_000.0
# No model has larger heads. A file may claim any number, and its table would fill the memory.
_MAX_HEAD_SIZE = 4096
_Floats = NDArray[np.float32]


class NotServed(OperatorError):
    """A model needs something that a runner does not compute."""

    code = "not_served"


@dataclass(frozen=True, slots=True)
class Rope:
    """A rotary position embedding.

    Attributes:
        frequencies: radians per token, one for each pair of a head (head_size / 2).
        attention_factor: multiplies cosine and sine.
        scaling: the scaling's name; empty for the plain embedding.
    """

    frequencies: tuple[float, ...]
    attention_factor: float = 1.0
    scaling: str = ""


def of_config(config: Mapping[str, Any], head_size: int) -> Rope:
    """Read ``config.json``, with transformers' precedence: ``rope_scaling`` before ``rope_parameters``.

    Raises:
        NotServed: an unknown kind of embedding.
        KeyError, TypeError, ValueError: a parameter is missing or not a number.
    """
    parameters = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if any(isinstance(value, dict) for value in parameters.values()):
        raise NotServed("a rotary position embedding that differs between layers")
    if float(parameters.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1) != 1:
        raise NotServed("a rotary position embedding of a part of each head")
    if "mrope_section" in parameters:
        raise NotServed("a rotary position embedding of images and video (mrope)")
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    base = float(parameters.get("rope_theta") or config.get("rope_theta") or DEFAULT_BASE)
    given = dict(parameters)
    trained = config.get("original_max_position_embeddings")
    given["original_max_position_embeddings"] = (
        trained or parameters.get("original_max_position_embeddings") or config.get("max_position_embeddings")
    )
    given["factor"] = parameters.get("factor")
    if kind == "yarn" and given["factor"] is None:
        given["factor"] = config["max_position_embeddings"] / given["original_max_position_embeddings"]
    return _scaled(kind, given, _plain(head_size, base), base)


def of_gguf(values: Mapping[str, Any], head_size: int, factors: Sequence[float] | None) -> Rope:
    """Read a GGUF file's metadata.

    Args:
        values: the metadata, keys without the architecture's prefix.
        head_size: numbers per head.
        factors: the tensor ``rope_freqs.weight``, by which frequencies are divided (Llama 3.1); None where missing.

    Raises:
        NotServed, KeyError, TypeError, ValueError: as :func:`of_config`.
    """
    base = float(values.get("rope.freq_base", DEFAULT_BASE))
    factor = float(values.get("rope.scaling.factor") or values.get("rope.scale_linear") or 1)
    kind = str(values.get("rope.scaling.type") or ("linear" if factor != 1 else "none"))  # as llama.cpp defaults
    frequencies = _plain(head_size, base)
    if factors is not None:
        if len(factors) != len(frequencies):
            raise ValueError(f"rope_freqs.weight has {len(factors)} numbers instead of {len(frequencies)}")
        frequencies = np.divide(frequencies, np.asarray(factors, dtype=np.float32), dtype=np.float32)
    _refuse_other_keys(values, kind)
    if kind == "none" or (kind == "linear" and factor == 1):
        return _rope(frequencies, 1.0, "" if factors is None else "rope_freqs")
    if factors is not None and kind != "linear":
        raise NotServed(f"a rotary position embedding scaled by rope_freqs and {kind}")
    given = {
        "factor": factor,
        "original_max_position_embeddings": values.get("rope.scaling.original_context_length")
        or values.get("context_length"),
        "beta_fast": values.get("rope.scaling.yarn_beta_fast"),
        "beta_slow": values.get("rope.scaling.yarn_beta_slow"),
    }
    return _scaled(kind, given, frequencies, base)


def _refuse_other_keys(values: Mapping[str, Any], kind: str) -> None:
    """Refuse settings that change a scaling's result and are not implemented."""
    neutral = {
        "rope.scaling.attn_factor": 1.0,
        "rope.scaling.yarn_attn_factor": 1.0,
        "rope.scaling.yarn_ext_factor": 1.0,
        "rope.scaling.yarn_log_multiplier": 0.0,
        "rope.scaling.alpha": 0.0,
    }
    for key, value in neutral.items():
        if kind != "none" and float(values.get(key, value)) != value:
            raise NotServed(f"a rotary position embedding with {key}")


def _scaled(kind: str, given: Mapping[str, Any], frequencies: _Floats, base: float) -> Rope:
    if kind in ("default", "none"):
        return _rope(frequencies, 1.0, "")
    if kind not in ("linear", "llama3", "yarn"):
        raise NotServed(f"a rotary position embedding scaled by {kind}")
    if given["factor"] is None:
        raise ValueError("the rotary scaling has no factor")
    factor = float(given["factor"])
    if not factor > 0 or not math.isfinite(factor):
        raise ValueError("the factor of the rotary scaling is not above 0")
    if kind == "linear":
        return _rope(frequencies / np.float32(factor), 1.0, kind)
    if kind == "llama3":
        return _rope(_llama3(frequencies, given, factor), 1.0, kind)
    return _rope(_yarn(frequencies, given, factor, base), _yarn_attention_factor(given, factor), kind)


def _rope(frequencies: _Floats, attention_factor: float, scaling: str) -> Rope:
    if not (np.isfinite(frequencies).all() and math.isfinite(attention_factor)):
        raise ValueError("the rotary position embedding is not finite")
    return Rope(tuple(frequencies.astype(np.float32).tolist()), attention_factor, scaling)


def _plain(head_size: int, base: float) -> _Floats:
    if not 0 < head_size <= _MAX_HEAD_SIZE:
        raise ValueError("a size of heads that no model has")
    exponents = np.arange(0, head_size, 2, dtype=np.float32) / np.float32(head_size)
    frequencies: _Floats = np.float32(1) / np.power(np.float32(base), exponents)
    return frequencies


def _llama3(frequencies: _Floats, given: Mapping[str, Any], factor: float) -> _Floats:
    """Divide the frequencies of long waves by the factor, keep short ones, interpolate between."""
    trained = float(given["original_max_position_embeddings"])
    low, high = float(given["low_freq_factor"]), float(given["high_freq_factor"])
    waves = np.float32(2 * math.pi) / frequencies
    share = (np.float32(trained) / waves - np.float32(low)) / np.float32(high - low)
    between = (1 - share) * frequencies / np.float32(factor) + share * frequencies
    slowed = np.where(waves > trained / low, frequencies / np.float32(factor), frequencies)
    is_between = ~(waves < trained / high) & ~(waves > trained / low)
    return np.where(is_between, between, slowed).astype(np.float32)


def _yarn(frequencies: _Floats, given: Mapping[str, Any], factor: float, base: float) -> _Floats:
    """Keep pairs that rotate often within the trained length; divide the frequencies of the others by the factor."""
    num_pairs = len(frequencies)
    trained = float(given["original_max_position_embeddings"])

    def pair_of(num_turns: float) -> float:
        return num_pairs * math.log(trained / (num_turns * 2 * math.pi)) / math.log(base)

    low, high = pair_of(float(given.get("beta_fast") or 32)), pair_of(float(given.get("beta_slow") or 1))
    if given.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * num_pairs - 1)
    width = high - low or 0.001
    slowed = np.clip((np.arange(num_pairs, dtype=np.float32) - np.float32(low)) / np.float32(width), 0, 1)
    mixed: _Floats = frequencies / np.float32(factor) * slowed + frequencies * (1 - slowed)
    return mixed


def _yarn_attention_factor(given: Mapping[str, Any], factor: float) -> float:
    if given.get("attention_factor") is not None:
        return float(given["attention_factor"])

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if given.get("mscale") and given.get("mscale_all_dim"):
        return scale(float(given["mscale"])) / scale(float(given["mscale_all_dim"]))
    return scale(1.0)
