"""``chatsvc bench quality`` on a model of a store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from chatsvc.cli.main import main
from chatsvc.models.store import ModelStore
from tests.models.ggufs import tiny_gguf
from tests.shapes import tiny_qwen2


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHATSVC_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def quality(*arguments: str):
    return CliRunner().invoke(main, ["bench", "quality", *arguments])


@pytest.mark.slow
def test_a_model_is_compared_with_its_source_for_each_group_size(home: Path, tmp_path: Path):
    source = tiny_gguf(tmp_path / "tiny.gguf")
    store = ModelStore(home / "models", home / "keys")
    store.import_path(source, "tiny")
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox " * 30)
    common = ["tiny", "--against", str(source), "--tokens", "96", "--window", "48", "--text", str(text)]
    openvino = ["--runner", "openvino", "--group-size", "0", "--group-size", "32"]
    result = quality(*common, *openvino, "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert [(row["runner"], row["group_size"]) for row in answer["results"]] == [("openvino", 0), ("openvino", 32)]
    assert all(row["num_tokens"] == 94 and row["agreement"] > 0.5 for row in answer["results"])
    store.activate("tiny")
    shown = quality("--tokens", "96", "--window", "48", "--text", str(text))
    assert "as served" in shown.output
    assert "top-1 agreement" in shown.output


def test_what_cannot_be_compared_names_the_remedy(home: Path, tmp_path: Path):
    assert "No model is active" in quality().output
    store = ModelStore(home / "models", home / "keys")
    store.import_path(tiny_qwen2(tmp_path / "tiny"), "tiny")
    refused = quality("tiny", "--runner", "openvino", "--tokens", "64", "--window", "64")
    assert refused.exit_code == 3
    assert "convert" in refused.output
    refused = quality("tiny", "--runner", "torch", "--group-size", "32", "--tokens", "64", "--window", "64")
    assert refused.exit_code == 3
    assert "--runner openvino" in refused.output
    store.import_path(tiny_gguf(tmp_path / "tiny.gguf"), "tiny-gguf")
    (tmp_path / "short.txt").write_text("a few words")
    assert "a window is" in quality("tiny-gguf", "--text", str(tmp_path / "short.txt")).output


def test_safetensors_are_measured_with_whichever_runner_serves_them(home: Path, tmp_path: Path):
    store = ModelStore(home / "models", home / "keys")
    store.import_path(tiny_qwen2(tmp_path / "tiny"), "tiny")
    common = ["tiny", "--tokens", "64", "--window", "64", "--json"]
    for runner in ("auto", "torch"):
        result = quality(*common, "--runner", runner)
        assert result.exit_code == 0, result.output
        (row,) = json.loads(result.stdout)["results"]
        assert row["runner"] == runner or runner == "auto"
        assert row["num_tokens"] == 63
