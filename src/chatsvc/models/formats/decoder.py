"""Describes what a model computes, from a GGUF file's head or from ``config.json``. Every runner is checked against it.

A runner that ignored one of these properties would silently compute another function. So a property without a field
here raises :class:`NotServed`, and each runner names the described properties that it does not support
(``engine/runners/choice.py``). For safetensors the configuration decides, as in transformers; for GGUF the tensors and
the metadata do, as in llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chatsvc.models.formats import rope
from chatsvc.models.formats.architectures import (
    BIASED,
    BY_GGUF,
    BY_MODEL_TYPE,
    IN_LAYERS,
    OUTSIDE_LAYERS,
    QK_NORMS,
    Architecture,
)
from chatsvc.models.formats.gguf import GgufHead
from chatsvc.models.formats.rope import NotServed, Rope

ROPE_FACTORS = "rope_freqs.weight"

# Metadata that changes the computation and that no GGUF runner supports. A value of 0 or false is neutral.
_CHANGING_KEYS = (
    "attention.clamp_kqv",
    "attention.kv_lora_rank",
    "attention.max_alibi_bias",
    "attention.output_scale",
    "attention.scale",
    "attention.temperature_scale",
    "attn_logit_softcapping",
    "embedding_scale",
    "expert_count",
    "final_logit_softcapping",
    "logit_scale",
    "residual_scale",
    "rope.dimension_sections",
    "use_parallel_residual",
)
_BLOCK_TENSOR = re.compile(r"blk\.(\d+)\.(.+)")
_IN_BLOCK = frozenset(
    {f"{name}.weight" for name, _ in IN_LAYERS.values()} | {f"{IN_LAYERS[part][0]}.bias" for part in BIASED}
)
_QK_NORMS_IN_BLOCK = frozenset(f"{name}.weight" for name, _ in QK_NORMS.values())
_UNUSED_IN_BLOCK = frozenset({"attn_rot_embd.weight", "attn_rotary_emb.inv_freq", "rope_freqs.weight"})
_OUTSIDE_BLOCKS = frozenset({*(f"{name}.weight" for name, _ in OUTSIDE_LAYERS.values()), ROPE_FACTORS})
_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder of Llama's family.

    Attributes:
        architecture: its name in the file's format.
        layers_without_rope: the layers without a rotary position embedding.
        biases: the parts that add a bias: ``qkv``, ``attention output``, ``MLP``.
        has_qk_norm: an RMSNorm of each query and key head, before the rotary position embedding.
        window: how many tokens attention reaches back, itself included, in some or all layers; 0: to the first token of
            the longest sequence that the model was trained for.
        is_interleaved: within a head, rows of the query and key matrices alternate between the first and the second
            half.
        kinds: number types of all used tensors, by their names in the file's format.
    """

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    vocabulary_size: int
    epsilon: float
    rope: Rope
    layers_without_rope: frozenset[int]
    biases: frozenset[str]
    has_qk_norm: bool
    window: int
    is_tied: bool
    is_interleaved: bool
    kinds: frozenset[str]


def of_gguf(head: GgufHead, rope_factors: Sequence[float] | None = None) -> Decoder:
    """Describe a GGUF file by its head and, where present, its tensor ``rope_freqs.weight``.

    Raises:
        NotServed: it computes something that has no field here.
        LookupError, TypeError, ValueError: the head is incomplete.
    """
    architecture = gguf_architecture(head.get("general.architecture", str))
    values = {key.removeprefix(f"{architecture.gguf}."): value for key, value in head.metadata.items()}
    _refuse_changing_keys(values)
    used = used_in_gguf(head.tensors, architecture)
    num_layers = int(values["block_count"])
    num_heads, head_size = _heads(values)
    if int(values.get("rope.dimension_count", head_size)) != head_size:
        raise NotServed("a rotary position embedding of a part of each head")
    if int(values.get("attention.value_length", head_size)) != head_size:
        raise NotServed("values that are longer or shorter than keys")
    return Decoder(
        architecture=architecture.gguf,
        hidden_size=int(values["embedding_length"]),
        intermediate_size=int(values["feed_forward_length"]),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=int(values.get("attention.head_count_kv", num_heads)),
        head_size=head_size,
        vocabulary_size=int(head.tensors["token_embd.weight"].shape[0]),
        epsilon=float(values["attention.layer_norm_rms_epsilon"]),
        rope=rope.of_gguf(values, head_size, rope_factors),
        layers_without_rope=_every(architecture.no_rope_interval, num_layers),
        biases=_biases_of_gguf(used),
        has_qk_norm=architecture.has_qk_norm,
        window=_window_of_gguf(values),
        is_tied="output.weight" not in head.tensors,
        is_interleaved=architecture.is_interleaved_in_gguf,
        kinds=frozenset(head.tensors[name].kind for name in used),
    )


def gguf_architecture(name: str) -> Architecture:
    """The architecture that GGUF files call so.

    Raises:
        NotServed: there is none.
    """
    if name not in BY_GGUF:
        raise NotServed(f"the architecture {name}")
    return BY_GGUF[name]


def used_in_gguf(names: Collection[str], architecture: Architecture) -> list[str]:
    """The tensors that take part in the computation.

    Raises:
        NotServed: a layer has an unknown tensor; ignoring it would change every answer.
    """
    known = _IN_BLOCK | (_QK_NORMS_IN_BLOCK if architecture.has_qk_norm else frozenset())
    used = []
    for name in names:
        in_block = _BLOCK_TENSOR.fullmatch(name)
        if in_block and in_block[2] not in known | _UNUSED_IN_BLOCK:
            raise NotServed(f"the tensor {name}")
        if (in_block and in_block[2] in known) or name in _OUTSIDE_BLOCKS:
            used.append(name)
        elif not in_block and name.startswith("rope_factors"):
            raise NotServed("a rotary position embedding scaled by longrope")
    return used


def of_config(config: Mapping[str, Any], names: Collection[str], kinds: frozenset[str]) -> Decoder:
    """Describe safetensors by ``config.json`` and the tensors' names with transformers' prefix ``model.``.

    Raises:
        NotServed, LookupError, TypeError, ValueError: as :func:`of_gguf`.
    """
    model_type = config["model_type"]
    if model_type not in BY_MODEL_TYPE:
        raise NotServed(f"the architecture {model_type}")
    architecture = BY_MODEL_TYPE[model_type]
    config = {**architecture.defaults, **config}
    if config.get("hidden_act", "silu") != "silu":
        raise NotServed(f"the activation {config['hidden_act']}")
    num_layers, num_heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
    head_size = int(
        config.get("head_dim") or architecture.defaults.get("head_dim") or config["hidden_size"] // num_heads
    )
    return Decoder(
        architecture=model_type,
        hidden_size=int(config["hidden_size"]),
        intermediate_size=int(config["intermediate_size"]),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=int(config.get("num_key_value_heads") or num_heads),
        head_size=head_size,
        vocabulary_size=int(config["vocab_size"]),
        epsilon=float(config.get("rms_norm_eps", 1e-6)),
        rope=rope.of_config(config, head_size),
        layers_without_rope=_layers_without_rope(config, architecture, num_layers),
        biases=_biases_of_config(config, architecture),
        has_qk_norm=architecture.has_qk_norm,
        window=_window_of_config(config, architecture, num_layers),
        is_tied=bool(config.get("tie_word_embeddings", False)) and "lm_head.weight" not in names,
        is_interleaved=False,
        kinds=kinds,
    )


def _heads(values: Mapping[str, Any]) -> tuple[int, int]:
    """The number of heads, and the size of one."""
    num_heads = int(values["attention.head_count"])
    return num_heads, int(values.get("attention.key_length", values["embedding_length"] // num_heads))


def _refuse_changing_keys(values: Mapping[str, Any]) -> None:
    for key in _CHANGING_KEYS:
        value = values.get(key)
        if value and not (key.endswith("scale") and value == 1):
            raise NotServed(f"the setting {key} = {value}")
    if values.get("attention.causal") is False:
        raise NotServed("attention that is not causal")


def _every(interval: int, num_layers: int) -> frozenset[int]:
    """The last of every so many layers; none where the interval is 0."""
    return frozenset(range(interval - 1, num_layers, interval)) if interval else frozenset()


def _layers_without_rope(config: Mapping[str, Any], architecture: Architecture, num_layers: int) -> frozenset[int]:
    if not architecture.no_rope_interval:
        return frozenset()
    has_rope = config.get("no_rope_layers")  # its numbers are 1 for a layer that has one
    if has_rope is None:
        return _every(int(config.get("no_rope_layer_interval") or architecture.no_rope_interval), num_layers)
    if len(has_rope) < num_layers:
        raise ValueError(f"no_rope_layers has {len(has_rope)} numbers for {num_layers} layers")
    return frozenset(layer for layer in range(num_layers) if not has_rope[layer])


def _window_of_gguf(values: Mapping[str, Any]) -> int:
    window = values.get("attention.sliding_window") or 0
    if not isinstance(window, int):
        raise NotServed("sliding windows that differ between layers")
    return window if window < int(values.get("context_length", 0)) else 0


def _window_of_config(config: Mapping[str, Any], architecture: Architecture, num_layers: int) -> int:
    """The window, unless no layer has it or it holds the longest sequence that the model was trained for."""
    window = int(config.get("sliding_window") or 0)
    if architecture.window == "none" or (architecture.window == "switched" and not config.get("use_sliding_window")):
        return 0
    if architecture.window == "switched":
        types = config.get("layer_types") or ()
        if unknown := set(types) - _LAYER_TYPES:
            raise NotServed(f"layers of the type {min(unknown)}")
        if "sliding_attention" not in types and (types or int(config.get("max_window_layers", 0)) >= num_layers):
            return 0
    return window if window < int(config.get("max_position_embeddings") or window + 1) else 0


def _biases_of_gguf(used: Collection[str]) -> frozenset[str]:
    names = {f".{IN_LAYERS[part][0]}.bias": bias for part, bias in BIASED.items()}
    return frozenset(bias for end, bias in names.items() if any(name.endswith(end) for name in used))


def _biases_of_config(config: Mapping[str, Any], architecture: Architecture) -> frozenset[str]:
    if architecture.bias == "qkv":
        return frozenset({"qkv"})
    found = set()
    if architecture.bias == "configured" and config.get("attention_bias"):
        found |= {"qkv", "attention output"}
    if architecture.has_mlp_bias and config.get("mlp_bias"):
        found.add("MLP")
    return frozenset(found)
