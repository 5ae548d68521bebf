"""What quantisation costs: sums by hand, and a real model against itself in fp32."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from chatsvc.engine.runners.quality import Forecast, compare, forecast_fp32, forecast_openvino, windows_of
from tests.models.ggufs import tiny_gguf


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
