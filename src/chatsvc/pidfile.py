"""Who serves a home: a locked file with the process id. Whoever changes the active model tells it so with SIGHUP.

The lock decides, not the number: a file that a killed process left behind is free. Knows nothing about serving.
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chatsvc.errors import OperatorError


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
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
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
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
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
