"""transformers' answers in fp32 about GGUF files: the tensors are put into its own classes by llama.cpp's conversion rules.

transformers can read GGUF files itself, but drops biases and scalings on the way; here nothing is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

_PARTS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def permuted(rows: Any, num_heads: int) -> Any:
    """A head's rows as GGUF files of Llama's architecture have them (``LlamaModel.permute`` of llama.cpp)."""
    return rows.reshape(num_heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def unpermuted(rows: Any, num_heads: int) -> Any:
    """The inverse."""
    return rows.reshape(num_heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def hf_name(name: str) -> str:
    """``blk.0.attn_q.bias`` -> ``model.layers.0.self_attn.q_proj.bias``."""
    *block, part, kind = name.split(".")
    return f"model.layers.{block[1]}.{_PARTS[part]}.{kind}" if block else f"{_OUTSIDE[part]}.{kind}"


def gguf_name(name: str) -> str:
    """The inverse."""
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("model.layers."):
        return f"{next(ours for ours, theirs in _OUTSIDE.items() if theirs == stem)}.{kind}"
    layer, part = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{next(ours for ours, theirs in _PARTS.items() if theirs == part)}.{kind}"


def model_of(path: Path, rope: dict[str, Any] | None = None) -> Any:
    """The model of a GGUF file of architecture llama or qwen2; ``rope`` is its scaling in transformers' words."""
    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()

    def value(key: str) -> Any:
        return reader.fields[f"{architecture}.{key}"].contents()

    names = {tensor.name for tensor in reader.tensors}
    heads, kv_heads = value("attention.head_count"), value("attention.head_count_kv")
    shape = {
        "vocab_size": int(next(one for one in reader.tensors if one.name == "token_embd.weight").shape[1]),
        "hidden_size": value("embedding_length"),
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": value("context_length"),
        "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
        "rope_parameters": {"rope_theta": value("rope.freq_base"), "rope_type": "default", **(rope or {})},
        "tie_word_embeddings": "output.weight" not in names,
    }
    if architecture == "llama":
        model: Any = LlamaForCausalLM(LlamaConfig(**shape, attention_bias="blk.0.attn_q.bias" in names))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**shape))
    state = {key: torch.zeros_like(tensor) for key, tensor in model.state_dict().items() if key.endswith("bias")}
    for tensor in reader.tensors:
        numbers = np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if architecture == "llama" and ".attn_q." in tensor.name:
            numbers = unpermuted(numbers, heads)
        if architecture == "llama" and ".attn_k." in tensor.name:
            numbers = unpermuted(numbers, kv_heads)
        if tensor.name != "rope_freqs.weight":
            state[hf_name(tensor.name)] = torch.from_numpy(np.ascontiguousarray(numbers))
    if shape["tie_word_embeddings"]:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    return model.eval()


def greedy(model: Any, prompt_ids: Sequence[int], count: int) -> list[int]:
    """What the model says after the prompt, by the largest logit each time."""
    ids = list(prompt_ids)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt_ids) :]
