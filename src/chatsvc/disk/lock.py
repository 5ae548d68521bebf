"""Locks between processes: flock(2) on a lock file. The kernel releases a lock when its holder ends, also by a kill."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import stat
import time
from pathlib import Path
from typing import Self

from chatsvc.errors import ChatsvcError

_RETRY_S = 0.02


class LockHeld(ChatsvcError):
    """Another process holds the lock."""

    code = "lock_held"


class Lock:
    """An exclusive lock, held from construction until :meth:`release` or the end of the context.

    Args:
        path: the lock file, made with mode 0600 when missing. ``descriptor`` is open on it.
        timeout_s: how long to wait for another holder; 0 tries once.

    Raises:
        LockHeld: another process (or another ``Lock`` of this one) still holds it.
        OSError: the file cannot be opened, or is not a lock file (:func:`open_lock_file`).
    """

    def __init__(self, path: Path, timeout_s: float = math.inf) -> None:
        self.descriptor = open_lock_file(path)
        deadline = time.monotonic() + timeout_s
        while not self._is_taken():
            if time.monotonic() >= deadline:
                os.close(self.descriptor)
                raise LockHeld(f"{path} is held by another process.")
            time.sleep(_RETRY_S)

    def _is_taken(self) -> bool:
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Release the lock."""
        os.close(self.descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def open_lock_file(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    """The descriptor of a lock file, made with mode 0600 when missing.

    A link in its place could make this process write to, or wait for, a file that somebody else chose.

    Raises:
        OSError: it cannot be opened, or it is a link or not a regular file.
    """
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise _not_a_lock(path) from None
        raise
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode) or state.st_nlink != 1:
        os.close(descriptor)
        raise _not_a_lock(path)
    return descriptor


def _not_a_lock(path: Path) -> OSError:
    why = "a lock file must be a regular file with one name, not a link; find out who made it, then remove it"
    return OSError(errno.ELOOP, why, str(path))
