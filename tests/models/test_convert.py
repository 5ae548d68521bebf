"""Conversion to OpenVINO: the result is a model of the store that generates what the original would."""

from __future__ import annotations

import shutil
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from transformers import AutoModelForCausalLM

from chatsvc.cli.models.bench import TOPICS as EXAMINED_TOPICS
from chatsvc.engine.runners.base import RunnerOptions
from chatsvc.engine.runners.openvino.pipeline import serving_properties
from chatsvc.errors import OperatorError
from chatsvc.models.store import ModelFolder, ModelStore
from chatsvc.models.supply import convert as convert_module
from chatsvc.models.supply.convert import convert
from chatsvc.models.supply.converter import CALIBRATION_TOPICS
from tests.models.test_tokenizer import generate
from tests.shapes import qwen15_05b_shape

PROMPT = [5, 6, 7, 8]


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> tuple[ModelFolder, ModelFolder]:
    """The tiny model and its int8 conversion."""
    home = tmp_path_factory.mktemp("converted")
    store = ModelStore(home / "models", home / "keys")
    source = store.import_path(tiny_folder, "tiny")
    return source, convert(store, "tiny", "int8")


def test_the_result_is_a_signed_model_with_the_sources_texts(converted: tuple[ModelFolder, ModelFolder]):
    source, result = converted
    assert (result.name, result.format) == ("tiny-int8", "openvino")
    assert result.description().weights == ["openvino_model.bin"]
    result.verify(full=True)
    ours, theirs = result.card(), source.card()
    assert ours.tokenizer_json == theirs.tokenizer_json
    assert ours.chat_template == theirs.chat_template
    assert ours.eos_token_ids == theirs.eos_token_ids
    assert ours.revision == theirs.revision


def test_the_conversion_generates_what_the_original_does(converted: tuple[ModelFolder, ModelFolder]):
    source, result = converted
    with result.weights() as path:
        fast = generate(path, PROMPT, 6)
    model = AutoModelForCausalLM.from_pretrained(source.path)
    reference = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0
    )[0].tolist()
    assert fast == reference[len(PROMPT) :]


def test_nothing_but_the_two_models_is_left(converted: tuple[ModelFolder, ModelFolder]):
    assert sorted(path.name for path in converted[0].path.parent.iterdir()) == ["tiny", "tiny-int8"]


def test_an_openvino_folder_of_somebody_else_is_imported(
    converted: tuple[ModelFolder, ModelFolder], store: ModelStore, tmp_path: Path
):
    source = Path(shutil.copytree(converted[1].path, tmp_path / "exported"))
    for name in ("model.json", "manifest.json"):
        (source / name).unlink()
    folder = store.import_path(source, "again")
    assert folder.format == "openvino"
    assert folder.description().weights == ["openvino_model.bin", "openvino_model.xml"]
    with folder.weights() as path:
        assert len(generate(path, PROMPT, 3)) == 3


def test_only_safetensors_are_converted(tiny: ModelFolder, store: ModelStore):
    with pytest.raises(OperatorError, match="only safetensors"):
        convert(store, tiny.name, "int8")


@pytest.mark.parametrize("missing", ["no_such_package", "json.no_such_part"])
def test_a_missing_package_names_the_remedy(
    store: ModelStore, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, missing: str
):
    store.import_path(tiny_folder, "plain")
    monkeypatch.setattr(convert_module, "_NEEDED", (missing,))
    with pytest.raises(OperatorError, match="make setup-dev"):
        convert(store, "plain", "int8")


@pytest.mark.slow
def test_a_failing_converter_leaves_nothing(store: ModelStore, tiny_folder: Path, tmp_path: Path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in tiny_folder.iterdir():
        (broken / path.name).write_bytes(
            path.read_bytes().replace(b'"intermediate_size": 128', b'"intermediate_size": 256')
        )
    store.import_path(broken, "broken")
    with pytest.raises(OperatorError, match=r"chatsvc\.models\.supply\.converter failed"):
        convert(store, "broken", "int8")
    assert [path.name for path in store.root.iterdir()] == ["broken"]


def test_int4_is_not_calibrated_with_the_text_that_it_is_examined_by():
    examined = [topics[topic] for topic in EXAMINED_TOPICS]
    for topic in CALIBRATION_TOPICS:
        assert not any(text[:300] in topics[topic] or topics[topic][:300] in text for text in examined), topic


@pytest.mark.slow
def test_int4_generates(store: ModelStore, tiny_folder: Path):
    store.import_path(tiny_folder, "tiny")
    with convert(store, "tiny", "int4").weights() as path:
        assert len(generate(path, PROMPT, 3)) == 3
        assert serving_properties(path, RunnerOptions())["VALUE_CACHE_PRECISION"] == "u4"


@pytest.mark.slow
def test_the_exact_shape_of_qwen15_is_imported_converted_activated_and_generates(tmp_path: Path):
    store = ModelStore(tmp_path / "models", tmp_path / "keys")
    source = qwen15_05b_shape(tmp_path / "source")
    folder = store.import_path(source, "qwen1.5-0.5b-chat")
    assert folder.card().context_length == 32768
    assert folder.card().eos_token_ids == [151645, 151643]
    store.activate(convert(store, folder.name, "int8").name)
    active = store.active()
    assert active is not None
    with active.weights() as path:
        assert len(generate(path, PROMPT, 4)) == 4
