"""Small GGUF files made with the ``gguf`` package: a Qwen2 of two layers, complete enough to generate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from tokenizers import Tokenizer

from tests.shapes import SPECIAL, TEMPLATE, trained_tokenizer

HIDDEN, LAYERS, HEADS, INTERMEDIATE, CONTEXT = 64, 2, 4, 128, 2048


def tiny_gguf(
    path: Path,
    *,
    pre: str | None = "qwen2",
    architecture: str = "qwen2",
    template: str | None = TEMPLATE,
    model: str = "gpt2",
    tokenizer: Tokenizer | None = None,
    with_tensors: bool = True,
    heads: int = HEADS,
    sampling: Mapping[str, float] | None = None,
) -> Path:
    """A GGUF file; ``pre=None`` leaves the name of the split out, as files from before May 2024 do."""
    tokenizer = tokenizer or trained_tokenizer(512)
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(CONTEXT)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_file_type(1)
    for name, value in (sampling or {}).items():
        add = writer.add_int32 if isinstance(value, int) else writer.add_float32
        add(f"general.sampling.{name}", value)
    add_tokenizer(writer, tokenizer, pre, model)
    if template is not None:
        writer.add_chat_template(template)
    if with_tensors:
        _add_tensors(writer, tokenizer.get_vocab_size())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(writer: GGUFWriter, tokenizer: Tokenizer, pre: str | None, model: str) -> None:
    """The vocabulary, the merges and the ends of a text."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model(model)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if token in SPECIAL else 1 for token, _ in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_eos_token_id(tokenizer.token_to_id("<|im_end|>"))
    writer.add_bos_token_id(tokenizer.token_to_id("<|endoftext|>"))


def _add_tensors(writer: GGUFWriter, vocab_size: int) -> None:
    random = np.random.default_rng(0)

    def matrix(name: str, rows: int, columns: int) -> None:
        writer.add_tensor(name, (random.standard_normal((rows, columns)) * 0.05).astype(np.float16))

    def vector(name: str, size: int, value: float = 0.0) -> None:
        writer.add_tensor(name, np.full(size, value, dtype=np.float32))

    matrix("token_embd.weight", vocab_size, HIDDEN)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        for name in ("attn_q", "attn_k", "attn_v"):
            matrix(f"{block}{name}.weight", HIDDEN, HIDDEN)
            vector(f"{block}{name}.bias", HIDDEN)
        matrix(f"{block}attn_output.weight", HIDDEN, HIDDEN)
        matrix(f"{block}ffn_gate.weight", INTERMEDIATE, HIDDEN)
        matrix(f"{block}ffn_up.weight", INTERMEDIATE, HIDDEN)
        matrix(f"{block}ffn_down.weight", HIDDEN, INTERMEDIATE)
        vector(f"{block}attn_norm.weight", HIDDEN, 1.0)
        vector(f"{block}ffn_norm.weight", HIDDEN, 1.0)
    vector("output_norm.weight", HIDDEN, 1.0)
