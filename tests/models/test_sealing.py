"""Sealed weights: nothing readable on a disk, everything bound together, one sentence for every failure."""

from __future__ import annotations

import io
import os
import re
import shutil
import stat
from pathlib import Path

import msgspec
import pytest

from chatsvc.disk import durable
from chatsvc.errors import ModelRefused, OperatorError
from chatsvc.models import manifest
from chatsvc.models.seal import sealed, sealing, unsealing
from chatsvc.models.seal.sealed import KeyEncryptionKey, Owner, read_kek
from chatsvc.models.store import ModelFolder, ModelStore
from tests.models.test_tokenizer import generate


@pytest.fixture
def kek_file(tmp_path: Path) -> Path:
    return _key_file(tmp_path / "kek")


def _key_file(path: Path) -> Path:
    path.write_bytes(os.urandom(32))
    path.chmod(0o400)
    return path


@pytest.fixture
def store(tmp_path: Path, kek_file: Path) -> ModelStore:
    return ModelStore(tmp_path / "home" / "models", tmp_path / "home" / "keys", kek_file)


@pytest.fixture
def kek(kek_file: Path) -> KeyEncryptionKey:
    return read_kek(kek_file)


@pytest.fixture
def sealed_model(store: ModelStore, tiny: ModelFolder, kek: KeyEncryptionKey) -> ModelFolder:
    sealing.seal(store, tiny.name, kek)
    return store.get(tiny.name)


@pytest.fixture
def plaintext(gguf_file: Path) -> bytes:
    return gguf_file.read_bytes()


def test_sealing_leaves_no_plaintext_in_the_home(sealed_model: ModelFolder, plaintext: bytes, tmp_path: Path):
    names = {path.name for path in sealed_model.path.iterdir()}
    assert names == {"model.json", "tokenizer.json", "chat_template.jinja", "manifest.json", "model.gguf.sealed"}
    canary = plaintext[-4096:-4000]
    for path in (tmp_path / "home").rglob("*"):
        assert path.is_dir() or canary not in path.read_bytes(), path
    assert (sealed_model.path / "model.gguf.sealed").read_bytes().startswith(b"CHATW1\n")
    assert {stat.S_IMODE(path.stat().st_mode) for path in sealed_model.path.iterdir()} == {0o600}


def test_the_plaintext_is_overwritten_before_it_is_unlinked(
    store: ModelStore, tiny: ModelFolder, kek: KeyEncryptionKey, plaintext: bytes
):
    with (tiny.path / "model.gguf").open("rb") as held:
        sealing.seal(store, tiny.name, kek)
        assert held.read() == bytes(len(plaintext))


def test_a_sealed_model_stays_active_and_keeps_its_card(store: ModelStore, tiny: ModelFolder, kek: KeyEncryptionKey):
    before = tiny.card()
    sealing.seal(store, tiny.name, kek)
    active = store.active()
    assert active is not None
    after = active.card()
    assert after.digest != before.digest
    assert msgspec.structs.replace(after, digest="") == msgspec.structs.replace(before, digest="")


def test_unsealed_weights_are_what_was_sealed_and_only_in_memory(sealed_model: ModelFolder, plaintext: bytes):
    with sealed_model.weights() as path:
        assert path.name == "model.gguf"
        assert path.readlink().parent == Path(f"/proc/{os.getpid()}/fd")
        assert "memfd:" in str(path.readlink().readlink())
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert path.read_bytes() == plaintext
        num_descriptors = len(list(Path("/proc/self/fd").iterdir()))
    assert not path.parent.exists()
    assert len(list(Path("/proc/self/fd").iterdir())) < num_descriptors


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may lock as much as it wants")
def test_on_a_machine_with_swap_unsealed_weights_are_locked(
    sealed_model: ModelFolder, plaintext: bytes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(unsealing, "_has_swap", lambda: True)
    with sealed_model.weights() as path:
        assert path.read_bytes() == plaintext
        mappings = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
        weights = next(each for each in mappings if "/memfd:weights" in each)
        locked = re.search(r"^Locked: +(\d+) kB$", weights, re.MULTILINE)
        assert locked is not None
        assert int(locked[1]) * 1024 >= len(plaintext) > 0


@pytest.mark.parametrize("size", [0, 1, 256 * 1024, 512 * 1024, 512 * 1024 + 1])
def test_weights_of_every_size_are_unsealed_where_they_are_kept_mapped(
    size: int, tmp_path: Path, kek: KeyEncryptionKey, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(unsealing, "keep_out_of_swap", lambda: True)
    content = os.urandom(size)
    (tmp_path / "weights").write_bytes(content)
    owner = Owner("m", "r")
    sealed.seal_file(tmp_path / "weights", tmp_path / "weights.sealed", owner, kek)
    with unsealing.unsealed(tmp_path, ["weights"], [], owner, kek) as folder:
        assert (folder / "weights").read_bytes() == content


def test_no_file_on_any_mount_is_written_while_unsealing(sealed_model: ModelFolder):
    before = {path: path.stat().st_mtime_ns for path in Path("/dev/shm").iterdir() if path.exists()}
    with sealed_model.weights() as path:
        new = [found for found in Path("/dev/shm").iterdir() if found not in before and found == path.parent]
        assert [entry.is_symlink() for entry in new[0].iterdir()] == [True]


def test_a_sealed_gguf_model_generates_what_the_plain_one_does(
    store: ModelStore, sealed_model: ModelFolder, gguf_file: Path
):
    with sealed_model.weights() as path:
        assert generate(path, [1, 2, 3], 5) == generate(gguf_file, [1, 2, 3], 5)


def test_a_sealed_folder_is_given_with_its_small_files(store: ModelStore, tiny_folder: Path, kek: KeyEncryptionKey):
    source = store.import_path(tiny_folder, "folder")
    expected = (source.path / "model.safetensors").read_bytes()
    sealing.seal(store, "folder", kek)
    with store.get("folder").weights() as path:
        assert {entry.name for entry in path.iterdir()} == {
            "model.safetensors",
            "config.json",
            "generation_config.json",
        }
        assert (path / "model.safetensors").read_bytes() == expected
        assert (path / "config.json").read_bytes() == (source.path / "config.json").read_bytes()


def test_an_empty_weight_file_is_sealed_too(tmp_path: Path, kek: KeyEncryptionKey):
    (tmp_path / "empty").touch()
    sealed.seal_file(tmp_path / "empty", tmp_path / "empty.sealed", Owner("m", "r"), kek)
    unsealing.check(tmp_path, ["empty"], Owner("m", "r"), kek)


def _refused(model: ModelFolder) -> None:
    with pytest.raises(ModelRefused) as refusal, model.weights():
        pass
    assert refusal.value.message == ModelRefused.message


def test_another_key_is_refused(sealed_model: ModelFolder, tmp_path: Path):
    _refused(ModelFolder(sealed_model.path, sealed_model.keys, _key_file(tmp_path / "other")))


def test_no_key_is_refused(sealed_model: ModelFolder):
    _refused(ModelFolder(sealed_model.path, sealed_model.keys))


@pytest.mark.parametrize("mode", [0o440, 0o404, 0o660])
def test_a_key_that_others_can_read_is_refused(sealed_model: ModelFolder, kek_file: Path, mode: int):
    kek_file.chmod(mode)
    _refused(sealed_model)
    with pytest.raises(OperatorError, match="chmod 0400"):
        read_kek(kek_file)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_key_of_another_size_is_refused(tmp_path: Path, size: int):
    (tmp_path / "short").write_bytes(bytes(size))
    (tmp_path / "short").chmod(0o400)
    with pytest.raises(OperatorError, match="exactly 32 raw bytes"):
        read_kek(tmp_path / "short")


def test_a_key_is_never_shown(kek: KeyEncryptionKey):
    assert kek.secret.hex() not in repr(kek)
    assert repr(kek.secret) not in repr(kek)


def _resign(model: ModelFolder) -> None:
    """As an attacker who has the signing key, but not the key-encryption key."""
    manifest.write(model.path, model.name, model.keys)


@pytest.mark.parametrize("position", [0, 8, 20, 300, 500, -1, -20, -30000])
def test_a_flipped_bit_is_refused_even_when_the_manifest_is_signed_again(sealed_model: ModelFolder, position: int):
    path = sealed_model.path / "model.gguf.sealed"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    _refused(sealed_model)
    _resign(sealed_model)
    _refused(sealed_model)


@pytest.mark.parametrize("size", [0, 5, 10, 200, 600, 20000])
def test_a_cut_is_refused_even_when_the_manifest_is_signed_again(sealed_model: ModelFolder, size: int):
    os.truncate(sealed_model.path / "model.gguf.sealed", size)
    _resign(sealed_model)
    _refused(sealed_model)


def test_a_header_that_claims_to_be_huge_is_refused(kek: KeyEncryptionKey):
    with pytest.raises(ModelRefused):
        sealed.read_header(io.BytesIO(b"CHATW1\n\xff\xff\xff\xff{}"), Owner("m", "r"), "f")


def test_another_models_sealed_file_is_refused(
    store: ModelStore, sealed_model: ModelFolder, gguf_file: Path, kek: KeyEncryptionKey
):
    store.import_path(gguf_file, "other")
    sealing.seal(store, "other", kek)
    other = store.get("other")
    shutil.copy(sealed_model.path / "model.gguf.sealed", other.path / "model.gguf.sealed")
    _resign(other)
    _refused(other)


def test_a_header_taken_from_another_file_is_refused(sealed_model: ModelFolder, tmp_path: Path, kek: KeyEncryptionKey):
    path = sealed_model.path / "model.gguf.sealed"
    content = path.read_bytes()
    with path.open("rb") as file:
        header = sealed.read_header(file, Owner("tiny", sealed_model.description().revision), "model.gguf")
        start = file.tell()
    changed = msgspec.structs.replace(header, wrapped_dek=kek.wrap(os.urandom(32)))
    path.write_bytes(changed.encode() + content[start:])
    _resign(sealed_model)
    _refused(sealed_model)
    for size in (header.size - 1, header.size + 1, 1 << 52, 1 << 80, -1):
        true, lie = (b'"size":%d' % number for number in (header.size, size))
        lying = header.encode()[11:].replace(true, lie)
        path.write_bytes(b"CHATW1\n" + len(lying).to_bytes(4, "big") + lying + content[start:])
        _resign(sealed_model)
        _refused(sealed_model)


def test_a_model_is_sealed_once(store: ModelStore, sealed_model: ModelFolder, kek: KeyEncryptionKey):
    with pytest.raises(OperatorError, match="sealed already"):
        sealing.seal(store, sealed_model.name, kek)


def test_a_model_that_does_not_verify_is_not_sealed(store: ModelStore, tiny: ModelFolder, kek: KeyEncryptionKey):
    (tiny.path / "extra").touch()
    with pytest.raises(ModelRefused):
        sealing.seal(store, tiny.name, kek)
    assert (tiny.path / "model.gguf").exists()


def test_a_rotated_key_opens_and_the_old_one_does_not(
    store: ModelStore, sealed_model: ModelFolder, kek: KeyEncryptionKey, tmp_path: Path, plaintext: bytes
):
    before = (sealed_model.path / "model.gguf.sealed").read_bytes()
    new_file = _key_file(tmp_path / "new")
    sealing.rotate(store, sealed_model.name, (kek, read_kek(new_file)))
    after = (sealed_model.path / "model.gguf.sealed").read_bytes()
    assert len(after) == len(before)
    assert after[600:] == before[600:]
    _refused(store.get(sealed_model.name))
    with ModelFolder(sealed_model.path, sealed_model.keys, new_file).weights() as path:
        assert path.read_bytes() == plaintext


def test_a_wrong_key_rotates_nothing(store: ModelStore, sealed_model: ModelFolder, kek: KeyEncryptionKey):
    wrong = KeyEncryptionKey(bytes(32))
    with pytest.raises(ModelRefused):
        sealing.rotate(store, sealed_model.name, (wrong, wrong))
    sealing.check(store, sealed_model.name, kek)
    assert sorted(path.name for path in store.root.iterdir()) == ["current", "tiny"]


def test_only_sealed_models_are_checked_and_rotated(store: ModelStore, tiny: ModelFolder, kek: KeyEncryptionKey):
    with pytest.raises(OperatorError, match="is not sealed"):
        sealing.check(store, tiny.name, kek)
    with pytest.raises(OperatorError, match="is not sealed"):
        sealing.rotate(store, tiny.name, (kek, kek))


@pytest.mark.parametrize("step", ["seal_file", "exchange"])
def test_a_crash_while_sealing_leaves_one_whole_model(
    store: ModelStore, tiny: ModelFolder, kek: KeyEncryptionKey, monkeypatch: pytest.MonkeyPatch, step: str
):
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sealing, step, crash)
        with pytest.raises(KeyboardInterrupt):
            sealing.seal(store, tiny.name, kek)
    store.get(tiny.name).verify(full=True)
    assert sorted(path.name for path in store.root.iterdir()) == ["current", "tiny"]


def test_plaintext_that_a_crash_left_is_destroyed_by_the_next_command(
    store: ModelStore, tiny: ModelFolder, kek: KeyEncryptionKey, plaintext: bytes, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patched:
        patched.setattr(sealing, "_destroy", lambda folder: None)  # the machine stopped right after the exchange
        sealing.seal(store, tiny.name, kek)
    left = store.root / ".sealing-tiny"
    with (left / "model.gguf").open("rb") as held:
        assert held.read() == plaintext
        held.seek(0)
        sealing.check(store, tiny.name, kek)
        assert held.read() == bytes(len(plaintext))
    assert not left.exists()


def test_sweeping_an_empty_store_does_nothing(store: ModelStore):
    sealing.sweep(store)
    assert not store.root.exists()


def test_folders_that_cannot_change_names_stay_as_they_are(tmp_path: Path):
    (tmp_path / "one").mkdir()
    with pytest.raises(FileNotFoundError):
        durable.exchange(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "one").exists()


def test_on_a_read_only_disk_a_gguf_file_is_opened_from_memory(
    tiny: ModelFolder, plaintext: bytes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere else
    with tiny.weights() as path:
        assert path.parent.parent == Path("/dev/shm")
        assert path.read_bytes() == plaintext


def test_a_sealed_folder_moves_to_another_store_under_its_name(
    sealed_model: ModelFolder, tmp_path: Path, kek_file: Path, plaintext: bytes
):
    other = ModelStore(tmp_path / "other" / "models", tmp_path / "other" / "keys", kek_file)
    with pytest.raises(OperatorError, match="sealed under the name 'tiny'"):
        other.import_path(sealed_model.path, "renamed")
    with other.import_path(sealed_model.path, "tiny").weights() as path:
        assert path.read_bytes() == plaintext


def test_a_sealed_safetensors_folder_moves_with_its_configuration(
    store: ModelStore, tiny_folder: Path, kek: KeyEncryptionKey, tmp_path: Path, kek_file: Path
):
    folder = store.import_path(tiny_folder, "folder")
    sealing.seal(store, "folder", kek)
    other = ModelStore(tmp_path / "other" / "models", tmp_path / "other" / "keys", kek_file)
    moved = other.import_path(folder.path, "folder")
    assert {path.name for path in moved.path.iterdir()} == {path.name for path in folder.path.iterdir()}
