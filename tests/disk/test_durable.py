"""Whole files and names: whoever changes a directory makes it durable afterwards, and a failure leaves nothing behind."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from chatsvc.disk import durable
from chatsvc.guard.credentials.keyring import KeyRing
from chatsvc.models.signing import SigningKeys


def names(folder: Path) -> set[str]:
    """What is in a folder, and what links in it lead to; without lock files."""
    return {f"{path.name} {path.readlink() if path.is_symlink() else ''}" for path in folder.glob("[!.]*")}


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> dict[Path, set[str]]:
    """The names in each directory when it was last synced."""
    seen: dict[Path, set[str]] = {}
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            folder = Path(f"/proc/self/fd/{descriptor}").resolve()
            seen[folder] = names(folder)

    monkeypatch.setattr(os, "fsync", fsync)
    return seen


def in_another_folder(folder: Path) -> None:
    (folder / "other").mkdir()
    durable.rename(folder / "old", folder / "other" / "new")


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: durable.write_file(folder / "new", b"content"),
        lambda folder: durable.replace_file(folder / "new", b"content"),
        lambda folder: durable.copy_file(folder / "old", folder / "new"),
        lambda folder: durable.rename(folder / "old", folder / "new"),
        in_another_folder,
        lambda folder: durable.swap_link(folder / "link", "old"),
        lambda folder: durable.erase(folder / "old"),
        lambda folder: KeyRing(folder, "HS256", keep_s=1),
        lambda folder: SigningKeys(folder).ensure(),
    ],
)
def test_a_change_of_names_is_durable(
    tmp_path: Path, synced: dict[Path, set[str]], change: Callable[[Path], object]
) -> None:
    (tmp_path / "old").write_bytes(b"old content")
    (tmp_path / "link").symlink_to("nowhere")
    before = names(tmp_path)
    change(tmp_path)
    assert synced[tmp_path] == names(tmp_path) != before
    assert all(synced[folder] == names(folder) for folder in synced)


def test_what_was_replaced_or_removed_is_overwritten(tmp_path: Path):
    for act in (lambda path: durable.replace_file(path, b"new", erase_old=True), durable.erase):
        (tmp_path / "key").write_bytes(b"a secret")
        (tmp_path / "key").chmod(0o400)
        with (tmp_path / "key").open("rb") as old:
            act(tmp_path / "key")
            assert old.read() == bytes(len(b"a secret"))
    assert list(tmp_path.iterdir()) == []


def test_readers_of_a_replaced_file_keep_the_old_content(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"old")
    with (tmp_path / "file").open("rb") as old:
        durable.replace_file(tmp_path / "file", b"new")
        assert old.read() == b"old"


def test_of_two_writers_of_a_new_file_one_gets_the_name(tmp_path: Path):
    durable.write_file(tmp_path / "file", b"first")
    with pytest.raises(FileExistsError):
        durable.write_file(tmp_path / "file", b"second")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"first"]


def test_a_small_file_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*small"):
        durable.replace_file(tmp_path / "small", b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_replacement_that_fails_leaves_nothing_beside(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "full").touch()
    with pytest.raises(OSError):
        durable.replace_file(tmp_path / "folder", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_link_that_cannot_be_swapped_leaves_nothing_beside(tmp_path: Path):
    (tmp_path / "current").mkdir()
    with pytest.raises(OSError):
        durable.swap_link(tmp_path / "current", "model")
    assert [path.name for path in tmp_path.iterdir()] == ["current"]


def test_a_new_file_never_follows_a_link(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        durable.write_file(tmp_path / "link", b"content")
    assert not (tmp_path / "elsewhere").exists()
