"""The store: what comes in, what is given out, and what is refused."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from pathlib import Path

import msgspec
import pytest

from chatsvc.errors import ModelRefused, OperatorError
from chatsvc.models.rollback import OlderModel
from chatsvc.models.store import ModelFolder, ModelStore


def test_an_imported_model_is_whole_private_and_signed(tiny: ModelFolder):
    names = {path.name for path in tiny.path.iterdir()}
    assert names == {"model.json", "tokenizer.json", "chat_template.jinja", "manifest.json", "model.gguf"}
    assert stat.S_IMODE(tiny.path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in tiny.path.iterdir()} == {0o600}
    tiny.verify(full=True)


def test_in_a_folder_that_a_group_may_read_models_are_the_groups_too(store: ModelStore, gguf_file: Path):
    store.root.mkdir(parents=True)
    if os.geteuid() == 0:
        os.chown(store.root, -1, 65534)
    store.root.chmod(0o2750)
    shared = store.import_path(gguf_file, "shared")
    everything = [shared.path, *shared.path.iterdir()]
    assert {path.stat().st_gid for path in everything} == {store.root.stat().st_gid}
    assert [stat.S_IMODE(path.stat().st_mode) for path in everything] == [0o2750, *[0o640] * (len(everything) - 1)]
    shared.verify()


def test_the_card_says_what_the_web_side_needs(tiny: ModelFolder, gguf_file: Path):
    card = tiny.card()
    assert (card.name, card.context_length) == ("tiny", 2048)
    assert card.revision == f"sha256:{hashlib.sha256(gguf_file.read_bytes()).hexdigest()}"
    assert card.digest == hashlib.sha256((tiny.path / "manifest.json").read_bytes()).hexdigest()
    assert "<|im_start|>assistant" in card.chat_template
    assert card.eos_token == "<|im_end|>"
    assert b'"<|im_start|>"' in card.tokenizer_json


def test_weights_gives_the_gguf_file(tiny: ModelFolder):
    with tiny.weights() as path:
        assert path == tiny.path / "model.gguf"


def test_weights_gives_the_folder_of_safetensors(store: ModelStore, tiny_folder: Path):
    folder = store.import_path(tiny_folder)
    assert (folder.name, folder.format) == ("tiny", "safetensors")
    with folder.weights() as path:
        assert path == folder.path
        assert (path / "config.json").exists()


def test_the_signing_key_is_made_once_and_private(store: ModelStore, tiny: ModelFolder):
    key = store.keys.folder / "model-signing.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o400
    before = key.read_bytes()
    store.import_path(tiny.path / "model.gguf", "second")
    assert key.read_bytes() == before


def test_a_key_that_others_can_read_signs_nothing(store: ModelStore, tiny: ModelFolder, gguf_file: Path):
    (store.keys.folder / "model-signing.key").chmod(0o640)
    with pytest.raises(OperatorError, match="chmod 0400"):
        store.import_path(gguf_file, "second")


def test_a_lost_public_key_is_made_again_by_signing(store: ModelStore, tiny: ModelFolder, gguf_file: Path):
    (store.keys.folder / "model-signing.pub").unlink()
    with pytest.raises(ModelRefused):
        tiny.verify()
    store.import_path(gguf_file, "second")
    tiny.verify()


@pytest.mark.parametrize("content", [b"zz", b"ab", b""])
def test_a_damaged_public_key_verifies_nothing(store: ModelStore, tiny: ModelFolder, content: bytes):
    public = store.keys.folder / "model-signing.pub"
    public.chmod(0o600)
    public.write_bytes(content)
    with pytest.raises(ModelRefused):
        tiny.verify()


def test_nothing_is_active_in_an_empty_store(store: ModelStore):
    assert store.active() is None
    assert store.list() == []


def test_activating_swaps_the_link(store: ModelStore, tiny: ModelFolder, gguf_file: Path):
    store.import_path(gguf_file, "second")
    store.activate("second")
    active = store.active()
    assert active is not None
    assert active.name == "second"
    assert (store.root / "current").readlink() == Path("second")
    assert sorted(path.name for path in store.root.iterdir()) == ["current", "second", "tiny"]


def test_a_model_that_does_not_verify_is_not_activated(store: ModelStore, tiny: ModelFolder, gguf_file: Path):
    second = store.import_path(gguf_file, "second")
    (second.path / "extra").touch()
    with pytest.raises(ModelRefused):
        store.activate("second")
    assert (store.root / "current").readlink() == Path("tiny")


@pytest.mark.parametrize("target", ["../elsewhere", "/etc"])
def test_a_link_out_of_the_store_is_an_error(store: ModelStore, tiny: ModelFolder, target: str):
    (store.root / "current").unlink()
    (store.root / "current").symlink_to(target)
    with pytest.raises(OperatorError, match="points out of the store"):
        store.active()


def test_a_link_to_a_model_that_is_gone_names_the_models_there_are(store: ModelStore, tiny: ModelFolder):
    tiny.path.rename(store.root / "renamed")
    with pytest.raises(OperatorError, match="there are: renamed"):
        store.active()


@pytest.mark.parametrize("name", ["..", "a/b", "../a", "current", ".hidden", "", "a" * 101, "a\n", "a b", "-x"])
def test_a_name_that_could_leave_the_store_is_refused(store: ModelStore, gguf_file: Path, name: str):
    with pytest.raises(OperatorError):
        store.get(name)
    if name:
        with pytest.raises(OperatorError):
            store.import_path(gguf_file, name)
    assert not store.root.exists()


def test_a_name_is_taken_once(store: ModelStore, tiny: ModelFolder, gguf_file: Path):
    with pytest.raises(OperatorError, match="already a model 'tiny'"):
        store.import_path(gguf_file, "tiny")
    tiny.verify(full=True)


def test_a_failed_import_leaves_nothing(store: ModelStore, tmp_path: Path):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF nonsense")
    with pytest.raises(OperatorError):
        store.import_path(bad)
    assert list(store.root.iterdir()) == []


def test_the_active_model_is_not_removed(store: ModelStore, tiny: ModelFolder):
    with pytest.raises(OperatorError, match="active model"):
        store.remove("tiny")


def test_a_removed_model_is_gone(store: ModelStore, tiny: ModelFolder, gguf_file: Path):
    store.import_path(gguf_file, "second")
    store.remove("second")
    assert [folder.name for folder in store.list()] == ["tiny"]
    assert sorted(path.name for path in store.root.iterdir()) == ["current", "tiny"]


def test_a_store_without_a_link_removes_models_too(store: ModelStore, gguf_file: Path):
    store.import_path(gguf_file, "only")
    store.remove("only")
    assert store.list() == []


def _plant_code(folder: Path) -> None:
    (folder / "modeling.py").write_text("import os")


def _plant_pickle(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def _plant_link(folder: Path) -> None:
    (folder / "vocab.json").symlink_to("/etc/passwd")


def _swap_for_link(folder: Path) -> None:
    shutil.copy(folder / "model.gguf", folder.parent / "elsewhere.gguf")
    (folder / "model.gguf").unlink()
    (folder / "model.gguf").symlink_to(folder.parent / "elsewhere.gguf")


def _swap_for_pipe(folder: Path) -> None:
    (folder / "model.gguf").unlink()
    os.mkfifo(folder / "model.gguf")


def _plant_folder(folder: Path) -> None:
    (folder / "sub").mkdir()


def _drop_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _flip_weights(folder: Path) -> None:
    with (folder / "model.gguf").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))


def _flip_weights_and_set_the_time_back(folder: Path) -> None:
    before = (folder / "model.gguf").stat()
    _flip_weights(folder)
    os.utime(folder / "model.gguf", ns=(before.st_atime_ns, before.st_mtime_ns))


def _cut_weights(folder: Path) -> None:
    os.truncate(folder / "model.gguf", 100)


def _change_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}")


def _drop_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def _reformat_manifest(folder: Path) -> None:
    content = msgspec.json.decode((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").write_bytes(msgspec.json.format(msgspec.json.encode(content)))


def _unsign_manifest(folder: Path) -> None:
    content = msgspec.json.decode((folder / "manifest.json").read_bytes())
    content["signature"] = "not base64"
    (folder / "manifest.json").write_bytes(msgspec.json.encode(content))


def _edit_manifest(folder: Path) -> None:
    _change_template(folder)
    content = (folder / "manifest.json").read_bytes()
    old = msgspec.json.decode(content)["files"][0]["sha256"].encode()
    new = hashlib.sha256((folder / "chat_template.jinja").read_bytes()).hexdigest().encode()
    (folder / "manifest.json").write_bytes(content.replace(old, new))


def _garble_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b"[]")


def _huge_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b" " * (1 << 21))


DAMAGES = [
    _plant_code,
    _plant_pickle,
    _plant_link,
    _swap_for_link,
    _swap_for_pipe,
    _plant_folder,
    _drop_tokenizer,
    _flip_weights,
    _flip_weights_and_set_the_time_back,
    _cut_weights,
    _change_template,
    _drop_manifest,
    _reformat_manifest,
    _unsign_manifest,
    _edit_manifest,
    _garble_manifest,
    _huge_manifest,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
def test_a_damaged_folder_is_refused_with_the_one_sentence(tiny: ModelFolder, damage):
    damage(tiny.path)
    for full in (False, True):
        with pytest.raises(ModelRefused) as refusal:
            tiny.verify(full=full)
        assert refusal.value.message == ModelRefused.message
    with pytest.raises(ModelRefused), tiny.weights():
        pass


@pytest.mark.parametrize("file", ["tokenizer.json", "chat_template.jinja", "model.json"])
def test_a_changed_small_file_never_reaches_a_card(tiny: ModelFolder, file: str):
    (tiny.path / file).write_bytes((tiny.path / file).read_bytes() + b" ")
    with pytest.raises(ModelRefused):
        tiny.card()


def test_a_folder_under_another_name_is_refused(store: ModelStore, tiny: ModelFolder):
    tiny.path.rename(store.root / "other")
    with pytest.raises(ModelRefused):
        store.get("other").verify()


def test_a_folder_signed_by_another_key_is_refused(tiny: ModelFolder, tmp_path: Path, gguf_file: Path):
    other = ModelStore(tmp_path / "other" / "models", tmp_path / "other" / "keys")
    theirs = other.import_path(gguf_file, "tiny")
    shutil.rmtree(tiny.path)
    shutil.copytree(theirs.path, tiny.path)
    with pytest.raises(ModelRefused):
        tiny.verify()


def test_a_copied_folder_verifies_though_its_times_are_new(tiny: ModelFolder, store: ModelStore, tmp_path: Path):
    shutil.copytree(tiny.path, tmp_path / "backup")
    shutil.rmtree(tiny.path)
    shutil.copytree(tmp_path / "backup", tiny.path)
    tiny.verify()


def test_a_description_of_another_model_is_refused(store: ModelStore, tiny: ModelFolder):
    with store.new_folder("second") as folder:
        for path in tiny.path.iterdir():
            if path.name != "manifest.json":
                shutil.copy(path, folder / path.name)
    with pytest.raises(ModelRefused):
        store.get("second").description()


@pytest.mark.parametrize("name", ["weights.bin", "model.pkl", "x.py", "libx.so", "training.pt"])
def test_code_and_pickles_are_never_signed(store: ModelStore, name: str):
    with pytest.raises(ModelRefused), store.new_folder("bad") as folder:
        (folder / name).write_bytes(b"x")
    assert store.list() == []


def test_a_pickle_under_an_innocent_name_is_never_signed(store: ModelStore):
    with pytest.raises(ModelRefused), store.new_folder("bad") as folder:
        (folder / "openvino_model.bin").write_bytes(b"\x80\x04\x95")


def test_an_older_model_of_a_source_becomes_active_only_by_its_version(
    store: ModelStore, gguf_file: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, moment in (("old", 1_000), ("new", 2_000)):
        monkeypatch.setattr("chatsvc.models.store.time.time", lambda moment=moment: moment)
        store.import_path(gguf_file, name, origin=f"modelscope some/model@{name}")
    other = store.import_path(gguf_file, "other", origin="modelscope another/model@v1")
    store.activate("old")
    store.activate("new")
    revision = store.get("old").description().revision
    for version in (None, "", "sha256:", revision[:11], "sha256:0000000000000"):
        with pytest.raises(OlderModel, match=f"--version {revision[:23]}"):
            store.activate("old", version)
    assert store.active() == store.get("new")
    assert store.activate("old", revision[:23]) == store.active()
    store.activate("new")
    assert store.activate("old", revision) == store.active()
    store.activate(other.name)
    store.activate("new")
