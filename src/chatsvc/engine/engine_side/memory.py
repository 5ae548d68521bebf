"""Memory of the engine process: what it holds, and dropping mapped files. Knows nothing about inference libraries."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_MADV_DONTNEED = 4
_MADV_DONTNEED_LOCKED = 24  # Linux 5.18; the memory is locked where weights were sealed


def private_bytes() -> int:
    """Bytes of this process's anonymous pages in memory: no mapped files, no untouched reservations."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no RssAnon")


def drop_file_mapping(path: Path) -> int:
    """Drop the pages of weights that are mapped from ``path`` (a file, or a directory's files); they come back if read.

    Call it when the library has repacked the weights and no longer reads the mapping.

    Returns:
        how many bytes of mappings were dropped.
    """
    files = [file for file in (path.iterdir() if path.is_dir() else [path]) if file.is_file()]
    names = {str(file.resolve()) for file in files}  # of unsealed weights: /memfd:…, which can only be opened by link
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    num_bytes = 0
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) < 6 or fields[5] not in names:
            continue
        start, end = (int(part, 16) for part in fields[0].split("-"))
        advices = (_MADV_DONTNEED, _MADV_DONTNEED_LOCKED)
        if any(libc.madvise(start, end - start, advice) == 0 for advice in advices):
            num_bytes += end - start
    for file in files:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    return num_bytes
