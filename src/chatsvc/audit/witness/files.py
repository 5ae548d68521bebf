"""The witness interface, and the two witnesses that need no server: a file on another mount, and the system's log.

:mod:`chatsvc.audit.witness.seen` reads back what they keep.
"""

from __future__ import annotations

import json
import socket
from abc import ABC, abstractmethod
from pathlib import Path

from chatsvc.audit.format.notes import NoteInvalid
from chatsvc.audit.witness.seen import Seen, checkpoint_in
from chatsvc.disk.append import AppendFile
from chatsvc.disk.durable import sync_directory
from chatsvc.errors import ChatsvcError

_PRIORITY = 13 * 8 + 6  # RFC 5424: facility "log audit", severity informational


class WitnessRefuses(ChatsvcError):
    """The checkpoint does not continue what the witness has seen."""

    code = "witness_refuses"


class Witness(ABC):
    """Keeps checkpoints. ``publish`` raises OSError, DiskFull, DiskFailed, StoreUnavailable or WitnessRefuses."""

    name: str

    @abstractmethod
    def publish(self, note: str) -> None:
        """Keep a signed note."""

    def close(self) -> None:  # noqa: B027  most keep nothing open
        """Close connections and files."""


class FileWitness(Witness):
    """A file on another mount. Refuses a shorter log, or another one of the same length."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path

    def publish(self, note: str) -> None:
        """Append the note, durably."""
        checkpoint = checkpoint_in(note)
        known = [each for each, _ in self._seen().notes if each.origin == checkpoint.origin]
        if checkpoint in known:
            return
        size = max((each.size for each in known), default=0)
        if size >= checkpoint.size:
            raise WitnessRefuses(
                f"it has seen {size} records, which the checkpoint of {checkpoint.size} does not continue"
            )
        file = AppendFile(self._path.resolve(), mode=0o640)  # the operator may have put a symbolic link here
        try:
            file.append(note.encode() + b"\n")
            sync_directory(file.path.parent)
        finally:
            file.close()

    def _seen(self) -> Seen:
        try:
            return Seen.read(self._path)
        except (FileNotFoundError, NoteInvalid):
            return Seen(())


class SyslogWitness(Witness):
    """The system log, which forwards it to another host: ``chatsvc-checkpoint`` and the note as a JSON string."""

    def __init__(self, address: str) -> None:
        self.name = f"syslog {address}"
        self._address = address

    def publish(self, note: str) -> None:
        """Send one datagram."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(1)
            sender.connect(self._address)
            sender.send(f"<{_PRIORITY}>chatsvc-checkpoint {json.dumps(note)}".encode())
