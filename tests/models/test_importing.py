"""What is taken in from folders that people have, and what is not."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from chatsvc.errors import OperatorError
from chatsvc.models.importing import preferred_gguf, suggested_name
from chatsvc.models.store import ModelStore
from tests.shapes import TEMPLATE


@pytest.fixture
def source(tiny_folder: Path, tmp_path: Path) -> Path:
    """A safetensors folder that a test may change."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "source"))


def _change(path: Path, **values: object) -> None:
    content = json.loads(path.read_text())
    content.update(values)
    path.write_text(json.dumps(content))


def test_texts_come_out_of_the_folders_small_files(store: ModelStore, source: Path):
    card = store.import_path(source).card()
    assert card.chat_template == TEMPLATE
    assert card.context_length == 2048
    assert (card.bos_token, card.eos_token) == ("", "<|im_end|>")
    assert len(card.eos_token_ids) == 2


def test_a_template_file_wins_over_the_tokenizers_configuration(store: ModelStore, source: Path):
    (source / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert store.import_path(source).card().chat_template == "{{ messages[0].content }}"


def test_of_several_templates_the_default_one_is_taken(store: ModelStore, source: Path):
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    _change(source / "tokenizer_config.json", chat_template=named)
    assert store.import_path(source).card().chat_template == "yes"


def test_a_model_without_template_and_chatml_is_refused(store: ModelStore, source: Path):
    _change(source / "tokenizer_config.json", chat_template=None)
    content = (source / "tokenizer.json").read_text().replace("<|im_start|>", "<|other|>")
    (source / "tokenizer.json").write_text(content)
    with pytest.raises(OperatorError, match=r"chat_template\.jinja"):
        store.import_path(source)


def test_tokens_given_as_objects_are_understood(store: ModelStore, source: Path):
    _change(
        source / "tokenizer_config.json", bos_token={"content": "<|endoftext|>"}, eos_token={"content": "<|im_end|>"}
    )
    card = store.import_path(source).card()
    assert (card.bos_token, card.eos_token) == ("<|endoftext|>", "<|im_end|>")


def test_control_tokens_that_were_not_marked_become_special(store: ModelStore, source: Path):
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        token["special"] = False
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    imported = json.loads(store.import_path(source).card().tokenizer_json)
    assert all(token["special"] for token in imported["added_tokens"])


def test_a_model_that_never_ends_is_refused(store: ModelStore, source: Path):
    for name in ("config.json", "generation_config.json"):
        _change(source / name, eos_token_id=None)
    _change(source / "tokenizer_config.json", eos_token=None)
    content = (source / "tokenizer.json").read_text().replace("<|im_start|>", "<|other|>")
    (source / "tokenizer.json").write_text(content)
    with pytest.raises(OperatorError, match="which token ends"):
        store.import_path(source)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", None, "tokenizer.json is missing"),
        ("tokenizer.json", b"{}", "cannot be read"),
        ("tokenizer.json", b'{"added_tokens": []}', "cannot be read"),
        ("tokenizer_config.json", b"[]", "not a JSON object"),
        ("config.json", b"{}", "max_position_embeddings"),
        ("config.json", None, "max_position_embeddings"),
        ("config.json", b" " * (5 << 20), "larger than"),
        ("model.safetensors", b"\x80\x04.", "not a safetensors file"),
        ("model.safetensors", b"\x02" + bytes(7) + b"{}", "not a safetensors file"),
    ],
)
def test_a_damaged_folder_is_refused_with_its_reason(
    store: ModelStore, source: Path, file: str, content: bytes | None, message: str
):
    (source / file).unlink()
    if content is not None:
        (source / file).write_bytes(content)
    with pytest.raises(OperatorError, match=message):
        store.import_path(source)
    assert store.list() == []


def test_safetensors_that_are_cut_off_are_refused(store: ModelStore, source: Path):
    os.truncate(source / "model.safetensors", (source / "model.safetensors").stat().st_size - 1)
    with pytest.raises(OperatorError, match="cut off"):
        store.import_path(source)


def test_pickles_and_code_beside_safetensors_stay_outside(store: ModelStore, source: Path):
    (source / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (source / "modeling.py").write_text("import os")
    names = {path.name for path in store.import_path(source).path.iterdir()}
    assert not names & {"pytorch_model.bin", "modeling.py"}


def test_a_folder_of_pickles_is_refused(store: ModelStore, tmp_path: Path):
    (tmp_path / "pickles").mkdir()
    (tmp_path / "pickles" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(OperatorError, match="never opened"):
        store.import_path(tmp_path / "pickles")


def test_a_download_cache_of_links_is_copied_by_content(store: ModelStore, source: Path, tmp_path: Path):
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in source.iterdir():
        (snapshot / path.name).symlink_to(path)
    folder = store.import_path(snapshot)
    assert not any(path.is_symlink() for path in folder.path.iterdir())
    folder.verify(full=True)


def test_shards_are_imported_with_their_index(store: ModelStore, source: Path):
    (source / "model.safetensors").rename(source / "model-00001-of-00001.safetensors")
    (source / "model.safetensors.index.json").write_text("{}")
    folder = store.import_path(source)
    assert folder.description().weights == ["model-00001-of-00001.safetensors"]
    assert (folder.path / "model.safetensors.index.json").exists()


@pytest.mark.parametrize("path", ["/etc/hostname", "/no/such/file", "/dev/null"])
def test_other_files_are_refused(store: ModelStore, path: str):
    with pytest.raises(OperatorError):
        store.import_path(Path(path), "name")


def test_of_several_gguf_files_the_eight_bit_one_is_taken(store: ModelStore, gguf_file: Path, tmp_path: Path):
    folder = tmp_path / "many"
    folder.mkdir()
    for kind in ("Q4_0", "Q8_0", "Q2_K"):
        shutil.copy(gguf_file, folder / f"model-{kind}.gguf")
    assert store.import_path(folder, "many").format == "gguf"
    assert preferred_gguf(sorted(folder.glob("*.gguf"))).name == "model-Q8_0.gguf"
    assert preferred_gguf([Path("only.gguf")]).name == "only.gguf"
    assert preferred_gguf([Path("m-q4_k_s.gguf"), Path("m-q4_k_m.gguf")]).name == "m-q4_k_m.gguf"


@pytest.mark.parametrize(
    ("path", "name"),
    [("Qwen1.5-0.5B Chat.gguf", "qwen1.5-0.5b-chat"), ("模型.gguf", "model"), ("a/Folder_x", "folder_x")],
)
def test_a_name_is_made_of_the_source(path: str, name: str):
    assert suggested_name(Path(path)) == name


def test_a_folder_of_another_store_is_taken_in_as_it_is(store: ModelStore, source: Path, tmp_path: Path):
    _change(source / "tokenizer_config.json", bos_token="<|endoftext|>")
    other = ModelStore(tmp_path / "other" / "models", tmp_path / "other" / "keys")
    theirs = other.import_path(source, "theirs")
    ours = store.import_path(theirs.path, "ours")
    ours.verify(full=True)
    card, expected = ours.card(), theirs.card()
    assert (card.bos_token, card.eos_token, card.revision) == (
        expected.bos_token,
        expected.eos_token,
        expected.revision,
    )
    assert (ours.path / "config.json").exists()


def test_a_damaged_description_of_another_store_is_refused(store: ModelStore, source: Path):
    (source / "model.json").write_text("{}")
    with pytest.raises(OperatorError, match="copy the folder again"):
        store.import_path(source)


def test_a_description_that_names_files_elsewhere_is_refused(store: ModelStore, source: Path, tmp_path: Path):
    other = ModelStore(tmp_path / "other" / "models", tmp_path / "other" / "keys")
    theirs = other.import_path(source, "theirs")
    _change(theirs.path / "model.json", weights=["../keys/model-signing.key"])
    with pytest.raises(OperatorError, match="cannot be a model's name"):
        store.import_path(theirs.path, "ours")
    assert store.list() == []
