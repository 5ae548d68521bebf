"""Weight files whose tensors are not as large as their configuration says never reach the C code."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from chatsvc.engine.runners.native import library
from chatsvc.engine.runners.native.filling import fill
from chatsvc.engine.runners.native.library import Capacity, Model
from chatsvc.engine.runners.native.weights import open_weights
from chatsvc.errors import OperatorError

pytestmark = pytest.mark.skipif(bool(library.missing()), reason="the native runner does not run here")

SHAPE = {
    "vocab_size": 128, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    Qwen2ForCausalLM(Qwen2Config(**SHAPE)).save_pretrained(tmp_path)
    return tmp_path


def load(folder: Path) -> None:
    weights = open_weights(folder)
    fill(Model(weights.shape, Capacity(max_tokens=64, max_rows=16, num_pages=2, num_threads=1)), weights)


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.1.self_attn.k_proj.weight",
        "model.layers.1.self_attn.q_proj.bias",
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.0.input_layernorm.weight",
    ],
)
@pytest.mark.parametrize("change", ["a row more", "a row less", "half as deep"])
def test_a_tensor_of_another_size_is_refused(folder: Path, name: str, change: str):
    tensors = load_file(folder / "model.safetensors")
    tensor = tensors[name]
    cut = {
        "a row more": torch.cat([tensor, tensor[:1]]),
        "a row less": tensor[:-1],
        "half as deep": tensor[..., : tensor.shape[-1] // 2],
    }
    tensors[name] = cut[change].contiguous()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(OperatorError, match="not of the size"):
        load(folder)


@pytest.mark.parametrize("key", ["hidden_size", "intermediate_size", "vocab_size", "num_key_value_heads"])
def test_a_configuration_that_promises_more_than_there_is_is_refused(folder: Path, key: str):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: config[key] * 2, "head_dim": 64}))
    with pytest.raises(OperatorError):
        load(folder)


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.k_proj.weight", "model.norm.weight"])
def test_a_tensor_that_is_not_there_is_named(folder: Path, name: str):
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(OperatorError, match=name):
        load(folder)


def test_as_it_is_it_loads(folder: Path):
    load(folder)
