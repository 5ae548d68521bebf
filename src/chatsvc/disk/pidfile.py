"""The pid file of a home: a locked file with the id of the process that serves it.

SIGHUP tells that process that the active model changed.

The lock decides, not the number: a file that a killed process left behind counts as free. Knows nothing about serving.
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chatsvc.disk.lock import Lock, LockHeld, open_lock_file
from chatsvc.errors import OperatorError


def pidfile_path(home: Path) -> Path:
    """The file that holds the process id of a home's supervisor."""
    return home / "run" / "serve.pid"


@contextmanager
def hold(home: Path) -> Iterator[None]:
    """Hold the lock of the process that serves this home, while the context lasts.

    Raises:
        OperatorError: another process serves it already.
    """
    path = pidfile_path(home)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        lock = Lock(path, timeout_s=0)
    except LockHeld:
        raise OperatorError(
            f"{home} is served already by process {_read(path)}: stop it, or set CHATSVC_HOME to another directory."
        ) from None
    with lock:
        os.ftruncate(lock.descriptor, 0)
        os.write(lock.descriptor, f"{os.getpid()}\n".encode())
        yield
        os.ftruncate(lock.descriptor, 0)


def serving_pid(home: Path) -> int | None:
    """The id of the process that serves this home; None if there is none."""
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
    """Ask the process that serves this home to load the active model; False if there is no such process."""
    pid = serving_pid(home)
    if pid is None:
        return False
    os.kill(pid, signal.SIGHUP)
    return True


def _read(path: Path) -> int | None:
    text = path.read_text(encoding="ascii").strip()
    return int(text) if text.isdigit() else None
