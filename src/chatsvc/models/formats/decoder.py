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
from chatsvc.models.formats.gguf import GgufHead
from chatsvc.models.formats.rope import NotServed, Rope

ARCHITECTURES = frozenset({"llama", "qwen2", "qwen3"})
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
_KNOWN_WEIGHTS = (
    "attn_norm",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
)
_KNOWN_IN_BLOCK = frozenset(
    {f"{name}.weight" for name in _KNOWN_WEIGHTS}
    | {f"attn_{part}.bias" for part in ("q", "k", "v", "output")}
    | {f"ffn_{part}.bias" for part in ("gate", "up", "down")}
)
_QWEN3_IN_BLOCK = frozenset({"attn_q_norm.weight", "attn_k_norm.weight"})
_UNUSED_IN_BLOCK = frozenset({"attn_rot_embd.weight", "attn_rotary_emb.inv_freq", "rope_freqs.weight"})
_OUTSIDE_BLOCKS = frozenset({"token_embd.weight", "output_norm.weight", "output.weight", ROPE_FACTORS})


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder of Llama's family.

    Attributes:
        architecture: ``llama``, ``qwen2`` or ``qwen3``.
        biases: the parts that add a bias: ``qkv``, ``attention output``, ``MLP``.
        is_interleaved: within a head, rows of the query and key matrices alternate between the first and the second
            half, as in GGUF files of Llama's architecture.
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
    biases: frozenset[str]
    is_tied: bool
    is_interleaved: bool
    kinds: frozenset[str]


def of_gguf(head: GgufHead, rope_factors: Sequence[float] | None = None) -> Decoder:
    """Describe a GGUF file by its head and, where present, its tensor ``rope_freqs.weight``.

    Raises:
        NotServed: it computes something that has no field here.
        LookupError, TypeError, ValueError: the head is incomplete.
    """
    architecture = head.get("general.architecture", str)
    if architecture not in ARCHITECTURES:
        raise NotServed(f"the architecture {architecture}")
    values = {key.removeprefix(f"{architecture}."): value for key, value in head.metadata.items()}
    _refuse_changing_keys(values)
    used = used_in_gguf(head.tensors, architecture)
    num_heads, head_size = _heads(values)
    if int(values.get("rope.dimension_count", head_size)) != head_size:
        raise NotServed("a rotary position embedding of a part of each head")
    if int(values.get("attention.value_length", head_size)) != head_size:
        raise NotServed("values that are longer or shorter than keys")
    return Decoder(
        architecture=architecture,
        hidden_size=int(values["embedding_length"]),
        intermediate_size=int(values["feed_forward_length"]),
        num_layers=int(values["block_count"]),
        num_heads=num_heads,
        num_kv_heads=int(values.get("attention.head_count_kv", num_heads)),
        head_size=head_size,
        vocabulary_size=int(head.tensors["token_embd.weight"].shape[0]),
        epsilon=float(values["attention.layer_norm_rms_epsilon"]),
        rope=rope.of_gguf(values, head_size, rope_factors),
        biases=_biases_of_gguf(used),
        is_tied="output.weight" not in head.tensors,
        is_interleaved=architecture == "llama",
        kinds=frozenset(head.tensors[name].kind for name in used),
    )


def used_in_gguf(names: Collection[str], architecture: str) -> list[str]:
    """The tensors that take part in the computation.

    Raises:
        NotServed: a layer has an unknown tensor; ignoring it would change every answer.
    """
    known = _KNOWN_IN_BLOCK | (_QWEN3_IN_BLOCK if architecture == "qwen3" else frozenset())
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
    architecture = config["model_type"]
    if architecture not in ARCHITECTURES:
        raise NotServed(f"the architecture {architecture}")
    if config.get("hidden_act", "silu") != "silu":
        raise NotServed(f"the activation {config['hidden_act']}")
    if config.get("use_sliding_window"):
        raise NotServed("sliding windows")
    num_heads = int(config["num_attention_heads"])
    head_size = int(config.get("head_dim") or (128 if architecture == "qwen3" else config["hidden_size"] // num_heads))
    return Decoder(
        architecture=architecture,
        hidden_size=int(config["hidden_size"]),
        intermediate_size=int(config["intermediate_size"]),
        num_layers=int(config["num_hidden_layers"]),
        num_heads=num_heads,
        num_kv_heads=int(config.get("num_key_value_heads") or num_heads),
        head_size=head_size,
        vocabulary_size=int(config["vocab_size"]),
        epsilon=float(config.get("rms_norm_eps", 1e-6)),
        rope=rope.of_config(config, head_size),
        biases=_biases_of_config(config),
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
    window = values.get("attention.sliding_window") or 0
    if not isinstance(window, int) or 0 < window < int(values.get("context_length", 0)):
        raise NotServed("sliding windows")


def _biases_of_gguf(used: Collection[str]) -> frozenset[str]:
    found = set()
    for name in used:
        if name.endswith((".attn_q.bias", ".attn_k.bias", ".attn_v.bias")):
            found.add("qkv")
        elif name.endswith(".attn_output.bias"):
            found.add("attention output")
        elif name.endswith(".bias"):
            found.add("MLP")
    return frozenset(found)


def _biases_of_config(config: Mapping[str, Any]) -> frozenset[str]:
    if config["model_type"] == "qwen2":
        return frozenset({"qkv"})
    attention = {"qkv", "attention output"} if config.get("attention_bias") else set()
    return frozenset(attention | ({"MLP"} if config["model_type"] == "llama" and config.get("mlp_bias") else set()))
