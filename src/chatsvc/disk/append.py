"""Files that are only ever appended to, durably: the edge between the audit log and the operating system.

A failed append leaves the file unchanged (:class:`DiskFull`) or makes it unusable until a restart
(:class:`DiskFailed`). An fsync error is never retried: the kernel marks the pages clean, so a second fsync
would succeed although the data is lost. Knows nothing about records.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from chatsvc.errors import ChatsvcError

_NO_SPACE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


class DiskFull(ChatsvcError):
    """The disk is full; the file is unchanged, and writing may be tried again."""

    code = "disk_full"


class DiskFailed(ChatsvcError):
    """The file may not be used again before a restart."""

    code = "disk_failed"


@dataclass(frozen=True, slots=True)
class Calls:
    """The system calls that can fail, so that a test can make each of them fail."""

    write: Callable[[int, bytes | memoryview], int] = os.write
    fdatasync: Callable[[int], None] = os.fdatasync
    fsync: Callable[[int], None] = os.fsync
    ftruncate: Callable[[int, int], None] = os.ftruncate


SYSTEM = Calls()


@contextlib.contextmanager
def full_or_failed(path: Path) -> Iterator[None]:
    """Turn an OSError into :class:`DiskFull`, which may be retried, or :class:`DiskFailed`, which may not."""
    try:
        yield
    except OSError as error:
        kind = DiskFull if error.errno in _NO_SPACE else DiskFailed
        raise kind(f"{path}: {error.strerror}") from error


class AppendFile:
    """One open file, made when missing. ``size`` is its durable length in bytes; a failed append is cut back to it.

    Before each append the open file must still be the one of this name with that size: a log rotation that copies and
    truncates, a clean-up or a restore may have removed it, and a write would then be lost or corrupt the log.

    Raises:
        DiskFull, DiskFailed: it cannot be opened; DiskFailed also for a symbolic link.
    """

    def __init__(self, path: Path, calls: Calls = SYSTEM, mode: int = 0o600) -> None:
        self.path = path
        self._calls = calls
        self._failed = False
        with full_or_failed(path):
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        self.size = os.fstat(self._fd).st_size

    def append(self, data: bytes) -> None:
        """Append durably, or leave the file unchanged.

        Raises:
            DiskFull: no space; the file has its former length.
            DiskFailed: any other failure, or the file was removed; every later call fails too.
        """
        if self._failed:
            raise DiskFailed(f"{self.path} failed before; it is not written again until a restart.")
        self._require_unchanged()
        try:
            with full_or_failed(self.path):
                self._write(data)
        except (DiskFull, DiskFailed) as error:
            self.truncate(self.size)
            self._failed = isinstance(error, DiskFailed)
            raise
        try:
            self._calls.fdatasync(self._fd)
        except OSError as error:
            self._failed = True
            raise DiskFailed(f"{self.path}: fdatasync: {error.strerror}") from error
        self.size += len(data)

    def _require_unchanged(self) -> None:
        """Two cheap calls. A change between them and the write is found by the next append."""
        mine = os.fstat(self._fd)
        try:
            named = self.path.lstat()
            there = (named.st_dev, named.st_ino) == (mine.st_dev, mine.st_ino)
            why = None if there else "was replaced by another file"
        except OSError as error:
            why = f"is gone or out of reach ({error.strerror})"
        if why is None and mine.st_nlink != 1:
            why = f"has {mine.st_nlink} names (hard links)"
        if why is None and mine.st_size != self.size:
            why = f"has {mine.st_size} bytes, not the {self.size} that were written"
        if why is not None:
            self._failed = True
            raise DiskFailed(f"{self.path} {why}: somebody changed it while it was open.")

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._calls.write(self._fd, rest) :]

    def truncate(self, size: int) -> None:
        """Cut the file to ``size`` bytes."""
        try:
            self._calls.ftruncate(self._fd, size)
        except OSError as error:
            self._failed = True
            raise DiskFailed(f"{self.path}: ftruncate: {error.strerror}") from error
        self.size = size

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def used_share(path: Path) -> float:
    """How full the file system is, 0 to 1, as `df` counts: space reserved for root is neither used nor free.

    0 if the directory is gone.
    """
    try:
        state = os.statvfs(path)
    except OSError:
        return 0.0
    used = state.f_blocks - state.f_bfree
    return used / (used + state.f_bavail) if used else 0.0
