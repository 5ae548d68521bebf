"""Unsealed weights in anonymous memory: a folder of links to memfd files that are on no mount and in no core dump.

Runners open paths, so each file becomes ``/dev/shm/<private>/NAME -> /proc/<pid>/fd/N``; the links are removed when the
context ends, right after loading, and what the runner has mapped lives on. Every chunk has been checked before the
first path is given out, and by the caller the manifest.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from chatsvc.errors import ModelRefused
from chatsvc.models import chunked
from chatsvc.models.chunked import MessageInvalid
from chatsvc.models.files import BLOCK_BYTES, open_regular
from chatsvc.models.sealed import (
    SUFFIX,
    Header,
    KeyEncryptionKey,
    Owner,
    read_header,
    unseal_and_compare,
    unseal_into,
)

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  only a private folder of links goes there
_MADV_DONTDUMP, _MADV_POPULATE_WRITE = 16, 23
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4


@dataclass(frozen=True, slots=True)
class Plain:
    """A small file's name and its checked bytes."""

    name: str
    content: bytes


@contextlib.contextmanager
def unsealed(
    folder: Path, weights: list[str], plain: list[Plain], owner: Owner, kek: KeyEncryptionKey
) -> Iterator[Path]:
    """A folder that holds the unsealed ``weights`` of ``folder`` and the ``plain`` files, all of them in memory.

    The caller compares the sealed files with their signed manifest, so what comes out of them is not hashed again.

    Raises:
        ModelRefused: a file does not unseal.
    """
    keep_out_of_swap()
    with contextlib.ExitStack() as stack:
        descriptors = {file.name: _memory_file(stack, file.content) for file in plain}
        for name in weights:
            descriptors[name] = _unseal(stack, folder, name, owner, kek, unseal_into)
        yield _linked(stack, descriptors)


def keep_out_of_swap() -> None:
    """All memory of this process, also what a runner copies the weights into later.

    Only where it may lock as much as it wants: beyond RLIMIT_MEMLOCK its next allocation would fail. There the unit's
    LimitMEMLOCK=infinity is missing, and MemorySwapMax=0 is what keeps pages out of swap.
    """
    if os.geteuid() == 0 or resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY:
        ctypes.CDLL(None).mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT)


@contextlib.contextmanager
def copied(path: Path) -> Iterator[Path]:
    """A folder in memory with a copy of one plain file.

    OpenVINO opens GGUF files for writing, though it never writes; so on a read-only disk it needs this.
    """
    with contextlib.ExitStack() as stack, open_regular(path) as file:
        descriptor = _new_memory_file(stack, os.fstat(file.fileno()).st_size)
        while os.sendfile(descriptor, file.fileno(), None, BLOCK_BYTES):
            pass
        yield _linked(stack, {path.name: descriptor})


def _linked(stack: contextlib.ExitStack, descriptors: dict[str, int]) -> Path:
    links = Path(tempfile.mkdtemp(prefix="chatsvc-", dir=_SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None))
    stack.callback(shutil.rmtree, links)
    for name, descriptor in descriptors.items():
        (links / name).symlink_to(f"/proc/{os.getpid()}/fd/{descriptor}")
    return links


def check(folder: Path, weights: list[str], owner: Owner, kek: KeyEncryptionKey) -> None:
    """Unseal everything into memory, compare it with what was sealed, and let it go again.

    Raises:
        ModelRefused: a file does not unseal.
    """
    for name in weights:
        with contextlib.ExitStack() as stack:
            _unseal(stack, folder, name, owner, kek, unseal_and_compare)


def _unseal(
    stack: contextlib.ExitStack,
    folder: Path,
    name: str,
    owner: Owner,
    kek: KeyEncryptionKey,
    unseal: Callable[[BinaryIO, memoryview, Header, KeyEncryptionKey], None],
) -> int:
    try:
        with open_regular(folder / f"{name}{SUFFIX}") as file:
            header = read_header(file, owner, name)
            size = chunked.plaintext_bytes(os.fstat(file.fileno()).st_size - file.tell())
            if size != header.size:
                raise ModelRefused
            descriptor = _new_memory_file(stack, size)
            with _writable(descriptor, size) as buffer:
                unseal(file, buffer, header, kek)
    except (OSError, MessageInvalid) as error:
        raise ModelRefused from error
    _freeze(descriptor)
    return descriptor


def _memory_file(stack: contextlib.ExitStack, content: bytes) -> int:
    descriptor = _new_memory_file(stack, len(content))
    os.pwrite(descriptor, content, 0)
    _freeze(descriptor)
    return descriptor


def _new_memory_file(stack: contextlib.ExitStack, size: int) -> int:
    descriptor = os.memfd_create("weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    stack.callback(os.close, descriptor)
    os.ftruncate(descriptor, size)
    return descriptor


@contextlib.contextmanager
def _writable(descriptor: int, size: int) -> Iterator[memoryview]:
    """The memory behind a descriptor, kept out of core dumps."""
    if size == 0:
        yield memoryview(bytearray())
        return
    with mmap.mmap(descriptor, size) as mapping:
        mapping.madvise(_MADV_DONTDUMP)
        # All pages at once, which is faster than one by one, and by ctypes, which lets other threads hash meanwhile.
        # Before Linux 5.14 it does nothing.
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        ctypes.CDLL(None).madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), _MADV_POPULATE_WRITE)
        with memoryview(mapping) as buffer:
            yield buffer


def _freeze(descriptor: int) -> None:
    """Fix the size: nobody can cut the file under a mapping. (OpenVINO maps GGUF files writable, so no write seal.)"""
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
