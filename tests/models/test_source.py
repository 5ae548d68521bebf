"""Fetching with the real modelscope library from a server on loopback."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatsvc.errors import OperatorError
from chatsvc.models.store import ModelStore
from chatsvc.models.supply.source import FetchOptions, fetch
from tests.models.hub import Hub, serve

CHAT = "qwen/Qwen1.5-0.5B-Chat"
GGUF = "qwen/Qwen1.5-0.5B-Chat-GGUF"


@pytest.fixture
def hub(tmp_path: Path, tiny_folder: Path, gguf_file: Path) -> Iterator[Hub]:
    chat = tmp_path / "chat"
    shutil.copytree(tiny_folder, chat)
    (chat / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (chat / "modeling_qwen.py").write_text("import os")
    quantised = tmp_path / "gguf"
    quantised.mkdir()
    for kind in ("q4_0", "q8_0"):
        shutil.copy(gguf_file, quantised / f"qwen1_5-0_5b-chat-{kind}.gguf")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with serve({CHAT: chat, GGUF: quantised, "some/pickle": pickled}) as served:
        yield served


@pytest.fixture
def options(hub: Hub, tmp_path: Path) -> FetchOptions:
    return FetchOptions(endpoint=hub.url, cache=tmp_path / "cache")


def test_safetensors_are_fetched_and_imported_and_code_is_not(store: ModelStore, hub: Hub, options: FetchOptions):
    told = []
    folder = fetch(store, CHAT, options=options, progress=lambda *numbers: told.append(numbers))
    assert (folder.name, folder.format) == ("qwen1.5-0.5b-chat", "safetensors")
    assert folder.description().source == f"modelscope {CHAT}@master"
    folder.verify(full=True)
    assert "model.safetensors" in hub.fetched
    assert not {"pytorch_model.bin", "modeling_qwen.py"} & set(hub.fetched)
    assert any(what == "fetching model.safetensors" and done == total for what, done, total in told)


def test_of_a_gguf_repository_one_file_is_fetched(store: ModelStore, hub: Hub, options: FetchOptions):
    folder = fetch(store, GGUF, options=options)
    assert (folder.name, folder.format) == ("qwen1.5-0.5b-chat-gguf", "gguf")
    assert hub.fetched == ["qwen1_5-0_5b-chat-q8_0.gguf"]


def test_another_gguf_file_is_chosen_by_pattern(store: ModelStore, hub: Hub, options: FetchOptions, tmp_path: Path):
    fetch(store, GGUF, "eight", options)
    chosen = FetchOptions(endpoint=hub.url, cache=tmp_path / "cache", file="*q4_0.gguf", revision="v1")
    folder = fetch(store, GGUF, "four", chosen)
    assert folder.description().source == f"modelscope {GGUF}@v1"
    assert hub.fetched[-1] == "qwen1_5-0_5b-chat-q4_0.gguf"


def test_a_fetch_that_is_cut_off_goes_on_where_it_was(store: ModelStore, hub: Hub, options: FetchOptions):
    hub.cut_after = 150_000
    folder = fetch(store, CHAT, options=options)
    folder.verify(full=True)
    assert any(asked.startswith("model.safetensors bytes=") for asked in hub.ranges)


def test_offline_the_cache_is_enough(store: ModelStore, hub: Hub, options: FetchOptions, tmp_path: Path):
    fetch(store, CHAT, "online", options)
    num_fetched = len(hub.fetched)
    folder = fetch(store, CHAT, "offline", FetchOptions(offline=True, endpoint=hub.url, cache=tmp_path / "cache"))
    folder.verify(full=True)
    assert len(hub.fetched) == num_fetched


def test_offline_without_a_cache_names_the_remedy(store: ModelStore, hub: Hub, tmp_path: Path):
    with pytest.raises(OperatorError, match="chatsvc model import FOLDER"):
        fetch(store, CHAT, options=FetchOptions(offline=True, endpoint=hub.url, cache=tmp_path / "empty"))
    assert hub.fetched == []


def test_an_unknown_model_is_one_clear_line(store: ModelStore, options: FetchOptions):
    with pytest.raises(OperatorError, match="check the id") as error:
        fetch(store, "qwen/no-such-model", options=options)
    assert "\n" not in error.value.message


def test_a_repository_of_pickles_is_refused(store: ModelStore, hub: Hub, options: FetchOptions):
    with pytest.raises(OperatorError, match="no file that matches"):
        fetch(store, "some/pickle", options=options)
    assert "pytorch_model.bin" not in hub.fetched


@pytest.mark.slow
def test_without_a_network_the_remedy_is_named(store: ModelStore, tmp_path: Path):
    with pytest.raises(OperatorError, match="Check the network"):
        fetch(store, CHAT, options=FetchOptions(endpoint="http://127.0.0.1:9", cache=tmp_path / "cache"))


@pytest.mark.parametrize("model_id", ["Qwen", "../etc/passwd", "a/b/c", "a/..", "https://x/y", "a b/c"])
def test_what_is_no_model_id_is_refused_before_any_request(store: ModelStore, model_id: str):
    with pytest.raises(OperatorError, match="OWNER/NAME"):
        fetch(store, model_id)


def test_a_pattern_for_a_pickle_is_refused(store: ModelStore, options: FetchOptions, hub: Hub):
    with pytest.raises(OperatorError, match=r"ends in \.gguf or \.safetensors"):
        fetch(store, CHAT, options=FetchOptions(endpoint=hub.url, file="*.bin"))


def test_a_taken_name_is_noticed_before_the_fetch(store: ModelStore, hub: Hub, options: FetchOptions, tiny):
    with pytest.raises(OperatorError, match="already a model"):
        fetch(store, CHAT, "tiny", options)
    assert hub.fetched == []
