"""The served architectures as data, for the readers of both formats, the runners and docs/reference/models.md.

All are decoders of Llama's family: RMSNorm before attention and before a SwiGLU MLP, grouped queries, a rotary position
embedding. An entry says in what an architecture differs. To add one of this family, add an entry here and a model to
``tests/engine/families.py``.

Sources: the configuration and modeling files of transformers 5, and of llama.cpp ``convert_hf_to_gguf.py`` and
``src/llama-model.cpp`` (names of tensors; which architectures have interleaved heads; ``n_no_rope_layer_step``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# Part -> its name in GGUF files and in safetensors, without prefix and ``.weight`` or ``.bias``.
OUTSIDE_LAYERS: Mapping[str, tuple[str, str]] = {
    "embedding": ("token_embd", "model.embed_tokens"),
    "head": ("output", "lm_head"),
    "final_norm": ("output_norm", "model.norm"),
}
IN_LAYERS: Mapping[str, tuple[str, str]] = {
    "attention_norm": ("attn_norm", "input_layernorm"),
    "query": ("attn_q", "self_attn.q_proj"),
    "key": ("attn_k", "self_attn.k_proj"),
    "value": ("attn_v", "self_attn.v_proj"),
    "output": ("attn_output", "self_attn.o_proj"),
    "mlp_norm": ("ffn_norm", "post_attention_layernorm"),
    "gate": ("ffn_gate", "mlp.gate_proj"),
    "up": ("ffn_up", "mlp.up_proj"),
    "down": ("ffn_down", "mlp.down_proj"),
}
QK_NORMS: Mapping[str, tuple[str, str]] = {
    "query_norm": ("attn_q_norm", "self_attn.q_norm"),
    "key_norm": ("attn_k_norm", "self_attn.k_norm"),
}
# Part of a layer that may have a bias -> how messages name it.
BIASED = {
    **dict.fromkeys(("query", "key", "value"), "qkv"),
    "output": "attention output",
    **dict.fromkeys(("gate", "up", "down"), "MLP"),
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """An architecture.

    Attributes:
        model_type: its name in ``config.json``.
        gguf: its name in GGUF files (``general.architecture``).
        models: the models, for readers.
        splits: how their GGUF files split text before merging (``tokenizer.ggml.pre``).
        is_interleaved_in_gguf: within a head, rows of query and key matrices alternate between its halves there.
        bias: ``qkv``: always, of queries, keys and values; ``configured``: by the configuration's ``attention_bias``,
            of the attention's output too, and by ``mlp_bias``; ``none``: whatever the configuration says.
        has_qk_norm: an RMSNorm of each query and key head, before the rotary position embedding.
        no_rope_interval: every so many layers one has no rotary position embedding; 0: all have it.
        window: ``none``: attention always reaches back to the first token; ``switched``: it ends at
            ``sliding_window`` if ``use_sliding_window`` is set; ``always``: at ``sliding_window`` if that is there.
        defaults: values that its ``config.json`` need not state.
    """

    model_type: str
    gguf: str
    models: str
    splits: tuple[str, ...]
    is_interleaved_in_gguf: bool = False
    bias: Literal["qkv", "configured", "none"] = "configured"
    has_mlp_bias: bool = False
    has_qk_norm: bool = False
    no_rope_interval: int = 0
    window: Literal["none", "switched", "always"] = "none"
    defaults: Mapping[str, Any] = field(default_factory=dict)


ALL = (
    Architecture(
        model_type="llama",
        gguf="llama",
        models="Llama 3.x, SmolLM2",
        splits=("llama-bpe", "smollm"),
        is_interleaved_in_gguf=True,
        has_mlp_bias=True,
    ),
    Architecture(
        model_type="mistral",
        gguf="llama",
        models="Mistral",
        splits=("tekken",),
        is_interleaved_in_gguf=True,
        bias="none",
        window="always",
        defaults={"num_key_value_heads": 8, "sliding_window": 4096},
    ),
    Architecture(
        model_type="qwen2",
        gguf="qwen2",
        models="Qwen1.5, Qwen2, Qwen2.5",
        splits=("qwen2",),
        bias="qkv",
        window="switched",
        defaults={"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28},
    ),
    Architecture(
        model_type="qwen3",
        gguf="qwen3",
        models="Qwen3",
        splits=("qwen2",),
        has_qk_norm=True,
        window="switched",
        defaults={"num_key_value_heads": 32, "head_dim": 128, "sliding_window": 4096, "max_window_layers": 28},
    ),
    Architecture(
        model_type="smollm3",
        gguf="smollm3",
        models="SmolLM3",
        splits=("llama-bpe",),
        is_interleaved_in_gguf=True,
        has_mlp_bias=True,
        no_rope_interval=4,
        window="switched",
        defaults={"num_key_value_heads": 4, "rope_theta": 2_000_000.0, "tie_word_embeddings": True},
    ),
)
_OF_A_LAYER = {**IN_LAYERS, **QK_NORMS}
BY_MODEL_TYPE = {one.model_type: one for one in ALL}
# GGUF files of Mistral are files of Llama, so the first entry with a name counts.
BY_GGUF = {one.gguf: one for one in reversed(ALL)}


def gguf_name(part: str, layer: int, kind: str = "weight") -> str:
    """A tensor's name in GGUF files; ``layer`` counts only for a part of a layer."""
    if part in OUTSIDE_LAYERS:
        return f"{OUTSIDE_LAYERS[part][0]}.{kind}"
    return f"blk.{layer}.{_OF_A_LAYER[part][0]}.{kind}"


def safetensors_name(part: str, layer: int, kind: str = "weight") -> str:
    """A tensor's name in safetensors."""
    if part in OUTSIDE_LAYERS:
        return f"{OUTSIDE_LAYERS[part][1]}.{kind}"
    return f"model.layers.{layer}.{_OF_A_LAYER[part][1]}.{kind}"
