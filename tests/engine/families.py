"""A tiny random model of every served architecture, in transformers' classes, and any such model as a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
from tokenizers import Tokenizer
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from tests.engine.truth import gguf_name, permuted
from tests.models.ggufs import add_tokenizer
from tests.shapes import TEMPLATE, trained_tokenizer, write_tokenizer

TOKENIZER = trained_tokenizer(400)
CONTEXT = 512
# Heads are larger than hidden_size / num_attention_heads; SmolLM3's fourth layer has no rotary position embedding.
SHAPE: dict[str, Any] = {
    "vocab_size": TOKENIZER.get_vocab_size(),
    "hidden_size": 192,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.05,
    "bos_token_id": TOKENIZER.token_to_id("<|endoftext|>"),
    "eos_token_id": TOKENIZER.token_to_id("<|im_end|>"),
    "pad_token_id": None,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# Name -> classes, and what differs from SHAPE and the class' defaults.
MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama3": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": {"rope_theta": 5e5, **_LLAMA3}}),
    "smollm2": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
    "mistral-window": (MistralConfig, MistralForCausalLM, {"sliding_window": 96}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 128, "tie_word_embeddings": True}),
    "qwen3-64": (Qwen3Config, Qwen3ForCausalLM, {}),
    "qwen3-yarn": (Qwen3Config, Qwen3ForCausalLM, {"rope_parameters": {"rope_theta": 1e6, **_YARN}}),
    "smollm3": (SmolLM3Config, SmolLM3ForCausalLM, {}),
    "smollm3-yarn": (SmolLM3Config, SmolLM3ForCausalLM, {"rope_parameters": {"rope_theta": 2e6, **_YARN}}),
    "smollm3-listed": (SmolLM3Config, SmolLM3ForCausalLM, {"no_rope_layers": [0, 1, 1, 0]}),
}


def new_model(name: str) -> Any:
    """The model; norms and biases are random, too, as in trained ones."""
    configuration, model_class, change = MODELS[name]
    torch.manual_seed(1)
    model = model_class(configuration(**{**SHAPE, **change}))
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
        if parameter_name.endswith("norm.weight"):
            torch.nn.init.uniform_(parameter, 0.6, 1.4)
    return model.eval()


def write_safetensors(folder: Path, model: Any) -> Path:
    """A folder as a hub has it."""
    write_tokenizer(folder, TOKENIZER)
    model.save_pretrained(folder)
    return folder


def write_gguf(
    path: Path,
    model: Any,
    tokenizer: Tokenizer = TOKENIZER,
    state: Mapping[str, torch.Tensor] | None = None,
    pre: str = "qwen2",
    extra: Mapping[str, str | int] | None = None,
    *,
    is_half: bool = False,
) -> Path:
    """A file as llama.cpp converts it, in F32 or, of matrices, F16, which OpenVINO needs."""
    config = model.config
    architecture = "llama" if config.model_type == "mistral" else config.model_type
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if is_half else gguf.LlamaFileType.ALL_F32)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    add_tokenizer(writer, tokenizer, pre, "gpt2")
    writer.add_chat_template(TEMPLATE)
    _add_rope(writer, model)
    for name, stated in (extra or {}).items():
        if name == "general.architecture":
            writer.kv_data[0][name].value = stated
        elif isinstance(stated, int):
            writer.add_uint32(name, stated)
        else:
            writer.add_string(name, stated)
    for key, value in (state or model.state_dict()).items():
        if key != "lm_head.weight" or not config.tie_word_embeddings:
            numbers = value.detach().half() if is_half and value.dim() > 1 else value.detach()
            _add_tensor(writer, config, key, numbers, is_interleaved=architecture in ("llama", "smollm3"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_rope(writer: gguf.GGUFWriter, model: Any) -> None:
    """Llama 3's scaling is a tensor of factors, which divide the frequencies; the others are metadata."""
    parameters, size = model.config.rope_parameters, model.config.head_dim
    writer.add_rope_freq_base(parameters["rope_theta"])
    scaling = parameters["rope_type"]
    if scaling == "llama3":
        plain = 1 / parameters["rope_theta"] ** (torch.arange(0, size, 2) / size)
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq).numpy())
    elif scaling != "default":
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling))
        writer.add_rope_scaling_factor(parameters["factor"])
        if "original_max_position_embeddings" in parameters:
            writer.add_rope_scaling_orig_ctx_len(parameters["original_max_position_embeddings"])


def _add_tensor(writer: gguf.GGUFWriter, config: Any, key: str, value: torch.Tensor, *, is_interleaved: bool) -> None:
    numbers = value.numpy()
    if is_interleaved and "q_proj" in key:
        numbers = permuted(numbers, config.num_attention_heads)
    if is_interleaved and "k_proj" in key:
        numbers = permuted(numbers, config.num_key_value_heads)
    writer.add_tensor(gguf_name(key), numbers.copy())
