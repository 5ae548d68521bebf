"""Unseals weights into anonymous memory: memfd files, which are on no mount and in no core dump.

Runners open paths, so each file gets a link ``/dev/shm/<private>/NAME -> /proc/<pid>/fd/N``. The links are removed when
the context ends, right after loading; the runner's mappings stay valid. Every chunk is authenticated before the first
path is returned; the caller verifies the manifest.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import mmap
import os
import resource
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from chatsvc.disk.files import BLOCK_BYTES, open_regular
from chatsvc.errors import ModelRefused
from chatsvc.models.seal.sealed import SUFFIX, Header, KeyEncryptionKey, Owner, read_header, unseal

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  only a private folder of links goes there
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4


@dataclass(frozen=True, slots=True)
class Plain:
    """A small file's name and its verified bytes."""

    name: str
    content: bytes


@contextlib.contextmanager
def unsealed(
    folder: Path, weights: list[str], plain: list[Plain], owner: Owner, kek: KeyEncryptionKey
) -> Iterator[Path]:
    """Yield a folder with the unsealed ``weights`` of ``folder`` and the ``plain`` files, all in memory.

    The caller verifies the sealed files against their signed manifest, so the plaintext is not hashed again.

    Raises:
        ModelRefused: a file does not unseal.
    """
    mapped_is_locked = keep_out_of_swap()
    with contextlib.ExitStack() as stack:
        descriptors = {file.name: _memory_file(stack, len(file.content), [file.content]) for file in plain}
        for name in weights:
            with _opened(folder, name, owner) as (header, message):
                parts = unseal(message, header, kek)
                descriptors[name] = _memory_file(stack, header.size, parts, keep_mapped=mapped_is_locked)
        yield _linked(stack, descriptors)


def keep_out_of_swap() -> bool:
    """Lock all memory of this process, later copies included. Returns whether swap exists and locking worked.

    Only with an unlimited RLIMIT_MEMLOCK: beyond a limit the next allocation would fail. Without
    LimitMEMLOCK=infinity in the unit, MemorySwapMax=0 keeps pages out of swap.
    """
    if os.geteuid() != 0 and resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY:
        return False
    is_locked: bool = ctypes.CDLL(None).mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) == 0
    return is_locked and _has_swap()


@contextlib.contextmanager
def copied(path: Path) -> Iterator[Path]:
    """Yield a folder in memory with a copy of one plain file.

    For read-only disks: OpenVINO opens GGUF files for writing, though it never writes.
    """
    with contextlib.ExitStack() as stack, open_regular(path) as file:
        parts = iter(lambda: file.read(BLOCK_BYTES), b"")
        descriptor = _memory_file(stack, os.fstat(file.fileno()).st_size, parts)
        yield _linked(stack, {path.name: descriptor})


def _linked(stack: contextlib.ExitStack, descriptors: dict[str, int]) -> Path:
    links = Path(tempfile.mkdtemp(prefix="chatsvc-", dir=_SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None))
    stack.callback(shutil.rmtree, links)
    for name, descriptor in descriptors.items():
        (links / name).symlink_to(f"/proc/{os.getpid()}/fd/{descriptor}")
    return links


def check(folder: Path, weights: list[str], owner: Owner, kek: KeyEncryptionKey) -> None:
    """Unseal everything, compare it with the headers' hashes, and keep nothing.

    Raises:
        ModelRefused: a file does not unseal, or differs from its header's hash.
    """
    for name in weights:
        digest = hashlib.sha256()
        with _opened(folder, name, owner) as (header, message):
            for part in unseal(message, header, kek):
                digest.update(part)
        if digest.hexdigest() != header.sha256:
            raise ModelRefused


@contextlib.contextmanager
def _opened(folder: Path, name: str, owner: Owner) -> Iterator[tuple[Header, BinaryIO]]:
    """Yield the header of a sealed file, and the file positioned at its message."""
    try:
        with open_regular(folder / f"{name}{SUFFIX}") as file:
            header = read_header(file, owner, name)
            if not 0 <= header.size <= os.fstat(file.fileno()).st_size:  # do not allocate for a false size
                raise ModelRefused
            yield header, file
    except OSError as error:
        raise ModelRefused from error


def _memory_file(
    stack: contextlib.ExitStack, size: int, parts: Iterable[bytes | memoryview], *, keep_mapped: bool = False
) -> int:
    """Create a memory file with this content; returns its descriptor.

    Its size is sealed, so it cannot shrink under a mapping. (OpenVINO maps GGUF files writable: no write seal.)
    ``keep_mapped`` maps it until the stack closes, because only mapped pages are locked; until then its pages count
    twice, here and in the runner's mapping.
    """
    descriptor = os.memfd_create("weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    stack.callback(os.close, descriptor)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    mapping = stack.enter_context(mmap.mmap(descriptor, size)) if keep_mapped and size else None
    if mapping:
        mapping.madvise(mmap.MADV_DONTDUMP)
    start = 0
    # Written, not decrypted into a mapping: the kernel need not zero a page that is written whole.
    with open(descriptor, "wb", closefd=False) as file:
        for part in parts:
            file.write(part)
            if mapping:
                _ = mapping[start : start + len(part) : mmap.PAGESIZE]  # touching a page locks it
            start += len(part)
    return descriptor


def _has_swap() -> bool:
    """Whether this machine has swap."""
    swaps = Path("/proc/swaps")
    return swaps.exists() and len(swaps.read_text(encoding="utf-8").splitlines()) > 1
