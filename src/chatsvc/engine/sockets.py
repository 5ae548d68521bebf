"""Unix sockets at paths of any length; non-blocking connections with a bounded out-buffer. Knows no frame's meaning.

A socket address holds 107 bytes of path. Longer ones are reached through ``/proc/self/fd/N/name`` of their directory.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from chatsvc.engine.protocol import FrameBuffer

_MAX_ADDRESS_BYTES = 107
_RECEIVE_BYTES = 256 * 1024


@contextlib.contextmanager
def short_address(path: Path) -> Iterator[str]:
    """An address that fits a ``sockaddr_un`` and refers to ``path`` while the context is open.

    Raises:
        OSError: the directory does not exist.
    """
    address = str(path)
    if len(os.fsencode(address)) <= _MAX_ADDRESS_BYTES:
        yield address
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def connect(path: Path) -> socket.socket:
    """A connected, non-blocking stream socket.

    Raises:
        OSError: no process listens there.
    """
    with contextlib.ExitStack() as undo:
        sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        sock.setblocking(False)  # a full backlog answers EAGAIN at once instead of holding the thread
        with short_address(path) as address:
            sock.connect(address)
        undo.pop_all()
        return sock


def identity_of(path: Path) -> tuple[int, int] | None:
    """Distinguishes a socket at ``path`` from an earlier one of that name; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_ctime_ns


def trial_path(path: Path) -> Path:
    """The path of a successor of the engine at ``path`` that has not answered yet."""
    return path.with_name(f"{path.name}.trial")


def next_path(path: Path) -> Path:
    """The path of a successor that has answered and waits to replace the engine at ``path``."""
    return path.with_name(f"{path.name}.next")


def rename(path: Path, new: Path) -> None:
    """Give a socket another name in one step. Not fsynced: every start creates its sockets again."""
    path.rename(new)


class Listener:
    """A listening socket: bound under a name of its own, then renamed over whatever was at ``path``.

    Its mode is 0600; in a folder that its group may enter 0660, so that the web process can be of another account.
    """

    def __init__(self, path: Path) -> None:
        _remove_left_over(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.ExitStack() as undo:
            undo.callback(self.sock.close)
            with short_address(temporary) as address:
                self.sock.bind(address)
            undo.callback(temporary.unlink, missing_ok=True)
            temporary.chmod(_mode_in(path.parent))
            self.sock.listen(128)
            self.sock.setblocking(False)
            self._inode = temporary.stat().st_ino
            rename(temporary, path)
            undo.pop_all()

    def accept(self) -> socket.socket | None:
        """The next connection, or None if it is already gone."""
        try:
            sock, _ = self.sock.accept()
        except (BlockingIOError, ConnectionError):
            return None
        sock.setblocking(False)
        return sock

    def close(self) -> None:
        """Stop listening and remove the socket's current name, unless a successor has taken it."""
        self.sock.close()
        main = self.path.with_name(self.path.name.removesuffix(".trial"))
        for name in {self.path, main, next_path(main)}:
            with contextlib.suppress(FileNotFoundError):
                if name.stat().st_ino == self._inode:
                    name.unlink()


def _mode_in(folder: Path) -> int:
    return 0o660 if folder.stat().st_mode & stat.S_IXGRP else 0o600


def _remove_left_over(path: Path) -> None:
    """Temporary names of engines that died between bind and rename."""
    for name in path.parent.glob(f".{path.name}.*"):
        pid = name.name.rpartition(".")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            name.unlink(missing_ok=True)


class Connection:
    """One stream socket that never blocks. Sending is safe from several threads, receiving belongs to one.

    Args:
        sock: non-blocking.
        max_unsent_bytes: the most bytes kept for a slow reader; with more, the connection counts as broken.
    """

    def __init__(self, sock: socket.socket, *, max_unsent_bytes: int) -> None:
        self.sock = sock
        self.broken = False
        self._max_unsent_bytes = max_unsent_bytes
        self._unsent = bytearray()
        self._lock = threading.Lock()
        self._frames = FrameBuffer()

    @property
    def wants_write(self) -> bool:
        """Whether bytes wait for the socket to take them."""
        return bool(self._unsent) and not self.broken

    def send(self, data: bytes) -> None:
        """Send as much as the socket accepts, keep the rest for :meth:`flush`. A broken connection discards it."""
        with self._lock:
            if self.broken:
                return
            self._unsent += data
            self._write()
            if len(self._unsent) > self._max_unsent_bytes:
                self.broken = True

    def flush(self) -> None:
        """Send more of the kept bytes."""
        with self._lock:
            self._write()

    def receive(self) -> list[bytes]:
        """Whole payloads that have arrived. At the end of the stream the connection is broken.

        Raises:
            ProtocolError: the received bytes are not valid frames.
        """
        try:
            data = self.sock.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            self.broken = True
            return []
        return self._frames.feed(data)

    def close(self) -> None:
        """Close the socket. May be called again."""
        with self._lock:
            self.broken = True
            self._unsent.clear()
            self.sock.close()

    def _write(self) -> None:
        while self._unsent and not self.broken:
            try:
                num_sent = self.sock.send(self._unsent)
            except BlockingIOError:
                return
            except OSError:
                self.broken = True
                return
            del self._unsent[:num_sent]
