"""Writes whole files and changes names so that both survive a crash and a power loss.

Every function ends with an fsync of the file and of the directory that names it, and raises OSError (with the file's
name) when it could not. Appending is :mod:`chatsvc.disk.append`. Knows nothing about what the files hold.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from io import BufferedRandom
from pathlib import Path

from chatsvc.disk.files import (
    BLOCK_BYTES,
    PRIVATE_FILE,
    Progress,
    make_private_folder,
    no_progress,
    open_regular,
)

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def new_file(path: Path, mode: int = PRIVATE_FILE) -> Iterator[BufferedRandom]:
    """Open a file that must not exist yet, for reading and writing; durable when the context ends without an exception.

    A crash can leave a part of it: use it below a temporary name, or :func:`write_file`.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, PRIVATE_FILE), "w+b") as file:
        os.fchmod(file.fileno(), mode)
        yield file
        file.flush()
        os.fsync(file.fileno())
    sync_directory(path.parent)


def write_file(path: Path, content: bytes, mode: int = PRIVATE_FILE) -> None:
    """Create a file with exactly this mode, complete or not at all. If two processes try, one succeeds.

    Raises:
        FileExistsError: the name is taken, also by a symbolic link.
    """
    with _draft(path, content, mode) as draft:
        os.link(draft, path)
        sync_directory(path.parent)


def replace_file(path: Path, content: bytes, mode: int = PRIVATE_FILE, *, erase_old: bool = False) -> None:
    """Make or replace a file in one step: readers see the old content or the new one, never a part.

    ``erase_old``: the old content is a secret, so overwrite it once its name is gone (:func:`erase`).
    """
    with contextlib.ExitStack() as stack:
        old = stack.enter_context(_opened_to_erase(path)) if erase_old and path.exists() else None
        rename(stack.enter_context(_draft(path, content, mode)), path)
        if old is not None:
            _overwrite(old)


def copy_file(source: Path, target: Path, progress: Progress = no_progress) -> str:
    """Copy a regular file to a new, private, durable one; returns its SHA-256 in hex.

    A copy, never a hard link: two folders must not share bytes that either can change.
    """
    digest = hashlib.sha256()
    with open_regular(source) as reader, new_file(target) as writer:
        total = os.fstat(reader.fileno()).st_size
        done = 0
        while block := reader.read(BLOCK_BYTES):
            digest.update(block)
            writer.write(block)
            done += len(block)
            if total > BLOCK_BYTES:
                progress(f"copying {target.name}", done, total)
    return digest.hexdigest()


def rename(source: Path, target: Path) -> None:
    """Give a file or folder another name on the same file system; a file of that name is replaced in one step."""
    source.rename(target)
    sync_directory(target.parent)
    if source.parent != target.parent:
        sync_directory(source.parent)


def exchange(one: Path, other: Path) -> None:
    """Swap the names of two folders of one parent in one step (renameat2(2) with RENAME_EXCHANGE).

    Raises:
        OSError: the file system cannot do it; nothing has changed.
    """
    renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(other))
    sync_directory(other.parent)


def swap_link(link: Path, target: str) -> None:
    """Point a symbolic link at ``target`` in one step: at every moment it leads to the old target or the new one."""
    beside = _beside(link)
    beside.symlink_to(target)
    try:
        rename(beside, link)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def erase(path: Path) -> None:
    """Overwrite a secret with zeros, then remove it. File systems that do not write in place keep the old bytes."""
    with _opened_to_erase(path) as descriptor:
        _overwrite(descriptor)
    path.unlink()
    sync_directory(path.parent)


def sync_file(path: Path) -> None:
    """Wait until data that others wrote to a file is on the disk."""
    _sync(path, os.O_RDONLY, os.fdatasync)


def sync_directory(path: Path, fsync: Callable[[int], None] | None = None) -> None:
    """Make the names in a directory durable."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY, fsync or os.fsync)


def _sync(path: Path, flags: int, sync: Callable[[int], None]) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _draft(path: Path, content: bytes, mode: int) -> Iterator[Path]:
    """The content in a temporary file beside ``path``, whose folder is made when missing; afterwards it is removed."""
    make_private_folder(path.parent)
    draft = _beside(path)
    try:
        with new_file(draft, mode) as file:
            file.write(content)
        yield draft
    except OSError as error:
        error.filename = error.filename or str(path)  # write(2) and fsync(2) are given a number, not a name
        raise
    finally:
        draft.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


@contextlib.contextmanager
def _opened_to_erase(path: Path) -> Iterator[int]:
    path.chmod(PRIVATE_FILE)
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _overwrite(descriptor: int) -> None:
    zeros, left = bytes(BLOCK_BYTES), os.fstat(descriptor).st_size
    while left > 0:
        left -= os.write(descriptor, zeros[: min(left, BLOCK_BYTES)])
    os.fsync(descriptor)
