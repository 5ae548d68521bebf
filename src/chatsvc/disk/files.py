"""Regular files and private folders: open, hash, check sizes. Writing is in :mod:`chatsvc.disk.durable`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from io import BufferedIOBase, BufferedReader
from pathlib import Path

from chatsvc.errors import OperatorError

BLOCK_BYTES = 1 << 20
PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700
GROUP_FILE = 0o640
GROUP_FOLDER = 0o2750  # setgid: new files belong to the folder's group

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and the total (0 when unknown)."""

_SPARSE_FROM_BYTES = 1 << 20
_LEAST_STORED_SHARE = 4  # a compressing file system stores less than the size, but weights never compress to a quarter


def no_progress(text: str, done: int, total: int) -> None:
    """For callers that show no progress."""


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file for reading.

    Raises:
        OSError: it is a symbolic link, a device, or a pipe (whose open would block).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f"{path} is not a regular file")
        yield file


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
        if total > BLOCK_BYTES:  # a single block needs no progress bar
            progress(text, done, total)
    return digest.hexdigest()


def sha256_of_all(paths: Sequence[Path], progress: Progress = no_progress) -> str:
    """SHA-256 in hex of the concatenation of regular files."""
    digest = hashlib.sha256()
    for number, path in enumerate(paths, start=1):
        with open_regular(path) as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
        progress("hashing the source", number, len(paths))
    return digest.hexdigest()


def check_sizes(sources: Sequence[Path], target: Path) -> None:
    """Check before copying that the files fit on the target's file system and are not sparse.

    Raises:
        OperatorError: too little free space, or a file is mostly holes (an unfinished download).
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


def make_private_folder(folder: Path) -> None:
    """Make a folder, with its parents, that only this account may enter; an existing one is not changed."""
    if not folder.is_dir():
        folder.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)


def group_may_read(folder: Path) -> bool:
    """Whether the group may read a folder, and so may read files put into it.

    The engine may run under an account of its own, in the group of the store's folder (mode 2750).
    """
    return bool(folder.stat().st_mode & stat.S_IRGRP)


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A private folder in ``parent``, removed afterwards unless it was renamed."""
    make_private_folder(parent)
    folder = parent / f".new-{secrets.token_hex(6)}"
    folder.mkdir(mode=PRIVATE_FOLDER)
    try:
        yield folder
    finally:
        if folder.is_dir():
            shutil.rmtree(folder)
