"""Files that are only ever appended to, durably: the edge between the audit log and the operating system.

A failed append leaves the file as it was before it (:class:`DiskFull`) or makes it unusable for good
(:class:`DiskFailed`): after an fsync error nobody knows what is on the disk, and a second fsync may lie (the kernel
marks the pages clean), so it is never retried. Knows nothing about records.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from chatsvc.disk.pidfile import open_lock_file
from chatsvc.errors import ChatsvcError

_NO_SPACE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


class DiskFull(ChatsvcError):
    """There is no space; the file is as it was, and writing may be tried again."""

    code = "disk_full"


class DiskFailed(ChatsvcError):
    """The file may not be used again before a restart."""

    code = "disk_failed"


class LockHeld(ChatsvcError):
    """Another process writes this log."""

    code = "lock_held"


@dataclass(frozen=True, slots=True)
class Calls:
    """The system calls that can fail, so that a test can make each of them fail."""

    write: Callable[[int, bytes | memoryview], int] = os.write
    fdatasync: Callable[[int], None] = os.fdatasync
    fsync: Callable[[int], None] = os.fsync
    ftruncate: Callable[[int, int], None] = os.ftruncate


SYSTEM = Calls()


class AppendFile:
    """One open file. ``size`` is what is known to be durable; nothing behind it stays.

    Somebody may take the file away while it is open: a log rotation that copies and truncates, a clean-up, a
    restore. What is written then would be lost or would tear the log, so before each append the open file
    must still be the one of this name.
    """

    def __init__(self, path: Path, calls: Calls = SYSTEM) -> None:
        self.path = path
        self._calls = calls
        self._failed = False
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise _named(error, path) from error
        self.size = os.fstat(self._fd).st_size

    def append(self, data: bytes) -> None:
        """Write and make durable, or leave no trace.

        Raises:
            DiskFull: no space; the file has its former length.
            DiskFailed: any other failure, or the file was taken away; every later call fails too.
        """
        if self._failed:
            raise DiskFailed(f"{self.path} failed before; it is not written again until a restart.")
        self._require_ours()
        try:
            self._write(data)
        except OSError as error:
            self.truncate(self.size)
            self._failed = error.errno not in _NO_SPACE
            raise _named(error, self.path) from error
        try:
            self._calls.fdatasync(self._fd)
        except OSError as error:
            self._failed = True
            raise DiskFailed(f"{self.path}: fdatasync: {error.strerror}") from error
        self.size += len(data)

    def _require_ours(self) -> None:
        """Two cheap calls: who holds the directory can still race with the write, and the next append finds that."""
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
        """Cut off what is behind ``size``."""
        try:
            self._calls.ftruncate(self._fd, size)
        except OSError as error:
            self._failed = True
            raise DiskFailed(f"{self.path}: ftruncate: {error.strerror}") from error
        self.size = size

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)


def _named(error: OSError, path: Path) -> DiskFull | DiskFailed:
    kind = DiskFull if error.errno in _NO_SPACE else DiskFailed
    return kind(f"{path}: {error.strerror}")


class Lock:
    """An exclusive flock. It ends with the process, however that ends."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        self._fd = open_lock_file(path)
        deadline = time.monotonic() + timeout_s
        while not self._taken():
            if time.monotonic() >= deadline:
                os.close(self._fd)
                raise LockHeld(f"{path} is held by another process; only one may write this audit log.")
            time.sleep(0.02)

    def _taken(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Let others write."""
        os.close(self._fd)


def fill_of(path: Path) -> float:
    """How full the file system is, 0 to 1, as `df` says it: what is kept for root is neither used nor free.

    Of a directory that is gone nothing is known: 0.
    """
    try:
        state = os.statvfs(path)
    except OSError:
        return 0.0
    used = state.f_blocks - state.f_bfree
    return used / (used + state.f_bavail) if used else 0.0


def make_durable(path: Path) -> None:
    """Wait until what others wrote to a file is on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path, calls: Calls = SYSTEM) -> None:
    """Make names inside a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        calls.fsync(descriptor)
    except OSError as error:
        raise DiskFailed(f"{path}: fsync: {error.strerror}") from error
    finally:
        os.close(descriptor)


def write_whole(path: Path, data: bytes, mode: int, *, replace: bool) -> bool:
    """Put a small file in place in one step, durably. False if it exists and ``replace`` is not set.

    A replaced file's old content is overwritten before its name goes: it may have been a key.

    Raises:
        DiskFull, DiskFailed: it is not there, or not durably.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    draft.unlink(missing_ok=True)
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            with _kept_open(path) as old:
                draft.rename(path)
                sync_directory(path.parent)
                _overwrite(old)
            return True
        os.link(draft, path)
        sync_directory(path.parent)
    except FileExistsError:
        return False
    except OSError as error:
        raise _named(error, path) from error
    finally:
        draft.unlink(missing_ok=True)
    return True


@contextlib.contextmanager
def _kept_open(path: Path) -> Iterator[int | None]:
    """The descriptor of a file that is about to be replaced; None if there is none."""
    try:
        path.chmod(0o600)
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _overwrite(descriptor: int | None) -> None:
    """Zeros over the old bytes, as far as the file system writes in place."""
    if descriptor is not None:
        os.pwrite(descriptor, bytes(os.fstat(descriptor).st_size), 0)
        os.fsync(descriptor)
