"""Writing model files so that they are there after a crash, are private, and are what they say: regular files.

Knows nothing about models. Every write ends in an fsync of the file and of the folder that names it.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from io import BufferedIOBase, BufferedRandom, BufferedReader
from pathlib import Path

from chatsvc.errors import OperatorError

BLOCK_BYTES = 1 << 20
PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700
GROUP_FILE = 0o640
GROUP_FOLDER = 0o2750  # what is made in it belongs to its group
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2

Progress = Callable[[str, int, int], None]
"""Called with a text, the work done and all of it (0 where nobody knows)."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SPARSE_FROM_BYTES = 1 << 20
_LEAST_STORED_SHARE = 4  # file systems that compress store less than there is, but weights do not compress so far
_RESERVED = frozenset({"current"})


def no_progress(text: str, done: int, total: int) -> None:
    """For callers that show nothing."""


def check_name(name: str) -> str:
    """A model's or a file's name that cannot leave its folder.

    Raises:
        OperatorError: it could, or it is a name that the store uses itself.
    """
    if _NAME.fullmatch(name) is None or name in _RESERVED:
        raise OperatorError(
            f"{name!r} cannot be a model's name: use 1 to 100 letters, digits, dots, dashes and underscores, "
            "beginning with a letter or digit, and not 'current'"
        )
    return name


def write_file(path: Path, content: bytes, mode: int = PRIVATE_FILE) -> None:
    """Make a new file, durable, with exactly this mode; an existing one is an error."""
    with new_file(path, mode) as file:
        file.write(content)


def replace_file(path: Path, content: bytes, mode: int = PRIVATE_FILE) -> None:
    """Write beside it, then rename over it: readers see the old content or the new one, never a part."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        write_file(beside, content, mode)
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


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


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BufferedReader]:
    """Open for reading what is a regular file itself: no symbolic link, no device, no pipe that would block us.

    Raises:
        OSError: it is something else.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f"{path} is not a regular file")
        yield file


@contextlib.contextmanager
def new_file(path: Path, mode: int = PRIVATE_FILE) -> Iterator[BufferedRandom]:
    """Open a file that was not there before, for reading and writing; durable when the context ends well."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, PRIVATE_FILE), "w+b") as file:
        os.fchmod(file.fileno(), mode)
        yield file
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def sha256_of(file: BufferedIOBase, progress: Progress = no_progress, text: str = "hashing") -> str:
    """SHA-256 in hex of an open file from its beginning."""
    digest = hashlib.sha256()
    total = os.fstat(file.fileno()).st_size
    done = 0
    file.seek(0)
    block = memoryview(bytearray(BLOCK_BYTES))
    while num_bytes := file.readinto(block):
        digest.update(block[:num_bytes])
        done += num_bytes
        if total > BLOCK_BYTES:  # what is done at once needs no bar
            progress(text, done, total)
    return digest.hexdigest()


def sha256_of_all(paths: Sequence[Path], progress: Progress = no_progress) -> str:
    """SHA-256 in hex of regular files one behind the other."""
    digest = hashlib.sha256()
    for number, path in enumerate(paths, start=1):
        with open_regular(path) as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
        progress("hashing the source", number, len(paths))
    return digest.hexdigest()


def check_sizes(sources: Sequence[Path], target: Path) -> None:
    """Before anything is read: the files must fit where they are to be copied, and be more than holes.

    Raises:
        OperatorError: they do not, or are not.
    """
    total = 0
    for path in sources:
        status = path.stat()
        total += status.st_size
        stored = status.st_blocks * 512
        if status.st_size > _SPARSE_FROM_BYTES and stored < status.st_size // _LEAST_STORED_SHARE:
            raise OperatorError(
                f"{path.name} is mostly holes: {stored} of its {status.st_size} bytes are stored; the copy or download "
                "was not finished"
            )
    free = shutil.disk_usage(target).free
    if total > free:
        raise OperatorError(f"{total >> 20} MB are to be copied, but {target} has {free >> 20} MB of free space")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_private_folder(folder: Path) -> None:
    """Make it, and its parents, for us alone; an existing one is left as it is."""
    if not folder.is_dir():
        folder.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)


def group_may_read(folder: Path) -> bool:
    """Whether the group may read a folder, and so should read what is put into it.

    The engine may run under an account of its own, in the group of the store's folder (mode 2750).
    """
    return bool(folder.stat().st_mode & stat.S_IRGRP)


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A private folder in ``parent`` that is gone afterwards unless it was renamed."""
    make_private_folder(parent)
    folder = parent / f".new-{secrets.token_hex(6)}"
    folder.mkdir(mode=PRIVATE_FOLDER)
    try:
        yield folder
    finally:
        if folder.is_dir():
            shutil.rmtree(folder)


def swap_link(link: Path, target: str) -> None:
    """Point a symbolic link at ``target`` in one step: it is never missing and never half."""
    beside = link.with_name(f".{link.name}.{secrets.token_hex(4)}")
    beside.symlink_to(target)
    try:
        beside.replace(link)
    except OSError:
        beside.unlink()
        raise
    sync_folder(link.parent)


def exchange(one: Path, other: Path) -> None:
    """Let two folders of one parent change names in one step (renameat2 with RENAME_EXCHANGE, renameat2(2)).

    Raises:
        OSError: the file system cannot do it; nothing has changed.
    """
    renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(other))
    sync_folder(other.parent)
