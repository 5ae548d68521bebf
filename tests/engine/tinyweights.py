"""Tiny weight files of random numbers, written without torch."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def tiny_safetensors(folder: Path) -> Path:
    """Qwen2: heads of 128 numbers, two queries to a KV head, biases, a head of its own, a panel that is not full."""
    hidden, intermediate, vocabulary, queries, keys = 128, 192, 75, 256, 128
    generator = np.random.default_rng(1)
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "lm_head.weight": (vocabulary, hidden)}
    for layer in ("model.layers.0", "model.layers.1"):
        for name, size in (("q", queries), ("k", keys), ("v", keys)):
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = (size, hidden)
            shapes[f"{layer}.self_attn.{name}_proj.bias"] = (size,)  # type: ignore[assignment]
        shapes[f"{layer}.self_attn.o_proj.weight"] = (hidden, queries)
        shapes[f"{layer}.mlp.gate_proj.weight"] = shapes[f"{layer}.mlp.up_proj.weight"] = (intermediate, hidden)
        shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, intermediate)
    tensors = {name: generator.normal(0, 0.05, shape).astype(np.float16) for name, shape in shapes.items()}
    norms = [
        "model.norm",
        *(f"model.layers.{n}.{kind}_layernorm" for n in (0, 1) for kind in ("input", "post_attention")),
    ]
    tensors |= {f"{name}.weight": np.ones(hidden, np.float16) for name in norms}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "vocab_size": vocabulary, "hidden_size": hidden,
        "intermediate_size": intermediate, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 128, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "max_position_embeddings": 512,
        "tie_word_embeddings": False, "hidden_act": "silu",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder
