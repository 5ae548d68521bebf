"""The file of signed notes that a witness on another host keeps, one note for each checkpoint sent to it.

An attacker who rewrites the log and its checkpoints on this host cannot rewrite these. Pure; knows nothing about
sending.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chatsvc.audit.format.notes import (
    Checkpoint,
    KeyUnknown,
    NoteInvalid,
    VerifierKey,
    open_note,
    parse_checkpoint,
    split_notes,
)

_SYSLOG = re.compile(rb'chatsvc-checkpoint ("(?:[^"\\]|\\.)*")')


def checkpoint_in(note: str) -> Checkpoint:
    """The checkpoint in a note, whose signature is not verified here."""
    return parse_checkpoint(note.rpartition("\n\n")[0] + "\n")


@dataclass(frozen=True, slots=True)
class Seen:
    """Notes as a witness keeps them, of one or many logs."""

    notes: tuple[tuple[Checkpoint, str], ...]

    @classmethod
    def read(cls, path: Path) -> Seen:
        """Read a witness's file, a system log with such lines, or a directory of ``*.checkpoints`` (an older copy).

        Raises:
            NoteInvalid: there is no checkpoint in it.
        """
        files = sorted(path.rglob("*.checkpoints")) if path.is_dir() else [path]
        try:
            notes = [note for file in files for note in _notes_in(file.read_bytes())]
        except ValueError:
            raise NoteInvalid(f"{path} holds a damaged checkpoint.") from None
        if not notes:
            raise NoteInvalid(f"{path} holds no checkpoint.")
        return cls(tuple((checkpoint_in(note), note) for note in notes))

    def sizes(self, log_id: str) -> list[int]:
        """The sizes at which it has seen a log."""
        return [checkpoint.size for checkpoint, _ in self.notes if _log_id(checkpoint) == log_id]

    def of(self, log_id: str, keys: Sequence[VerifierKey]) -> list[Checkpoint]:
        """The checkpoints of one log, their signatures verified.

        Raises:
            NoteInvalid: one has a wrong signature.
            KeyUnknown: one is signed by another key than the log.
        """
        notes = [note for checkpoint, note in self.notes if _log_id(checkpoint) == log_id]
        return [parse_checkpoint(open_note(note, keys)) for note in notes]

    def lost(self, found: Iterable[str | None], keys: Sequence[VerifierKey]) -> list[tuple[str, int]]:
        """Logs signed with one of these public keys that are not among those found, with the largest size seen."""
        lost: dict[str, int] = {}
        known = set(found)
        for checkpoint, note in self.notes:
            if _log_id(checkpoint) in known or not _is_signed_by(note, checkpoint.origin, keys):
                continue
            lost[checkpoint.origin] = max(lost.get(checkpoint.origin, 0), checkpoint.size)
        return sorted(lost.items())


def _notes_in(data: bytes) -> list[str]:
    lines = _SYSLOG.findall(data)
    if lines:
        return [str(json.loads(line)) for line in lines]
    notes, rest = split_notes(data)
    if rest.endswith(b"\n") and b"\n\n" in rest:  # one note alone need not be followed by an empty line
        notes.append(rest.decode())
    return notes


def _log_id(checkpoint: Checkpoint) -> str:
    return checkpoint.origin.rpartition("/")[2]


def _is_signed_by(note: str, name: str, keys: Sequence[VerifierKey]) -> bool:
    try:
        open_note(note, [VerifierKey(name, key.public) for key in keys])
    except (KeyUnknown, NoteInvalid):
        return False
    return True
