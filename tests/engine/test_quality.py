"""What quantisation costs: sums by hand, and a real model against itself in fp32."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

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
from tests.models.ggufs import tiny_gguf
from tests.shapes import tiny_qwen2


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


@pytest.mark.skipif(bool(library.missing()), reason="the native runner does not serve here")
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
