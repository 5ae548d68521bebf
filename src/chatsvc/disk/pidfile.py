"""Who serves a home: a locked file with the process id. Whoever changes the active model tells it so with SIGHUP.

The lock decides, not the number: a file that a killed process left behind is free. :func:`open_lock_file` opens every
lock file of the project. Knows nothing about serving.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chatsvc.errors import OperatorError


def open_lock_file(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    """The descriptor of a lock file, made with mode 0600 when missing.

    A link in its place could make this process write to, or wait for, a file that somebody else chose.

    Raises:
        OSError: it cannot be opened, or it is a link or no regular file.
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
    why = "a lock file must be a regular file with one name, not a link; look who made it, then remove it"
    return OSError(errno.ELOOP, why, str(path))


def pidfile_path(home: Path) -> Path:
    """Where the supervisor of a home leaves its process id."""
    return home / "run" / "serve.pid"


@contextmanager
def hold(home: Path) -> Iterator[None]:
    """Be the one that serves this home.

    Raises:
        OperatorError: another process serves it already.
    """
    path = pidfile_path(home)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = open_lock_file(path)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OperatorError(
                f"{home} is served already by process {_read(path)}: stop it, or set CHATSVC_HOME to another directory."
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def serving_pid(home: Path) -> int | None:
    """The process that serves this home, None where there is none."""
    path = pidfile_path(home)
    try:
        descriptor = open_lock_file(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(path)
    finally:
        os.close(descriptor)
    return None


def tell_to_swap(home: Path) -> bool:
    """Ask the process that serves this home to bring up the active model; False where nobody serves it."""
    pid = serving_pid(home)
    if pid is None:
        return False
    os.kill(pid, signal.SIGHUP)
    return True


def _read(path: Path) -> int | None:
    text = path.read_text(encoding="ascii").strip()
    return int(text) if text.isdigit() else None
