"""What a witness off this host has seen: a file of signed notes that grew as checkpoints were sent there.

Whoever rewrites the log and its checkpoints on this host cannot rewrite these. Pure; knows nothing about sending.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chatsvc.audit.checkpoint import (
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
    """The checkpoint of a note whose signature is somebody else's business."""
    return parse_checkpoint(note.rpartition("\n\n")[0] + "\n")


@dataclass(frozen=True, slots=True)
class Seen:
    """Notes as a witness keeps them, of one or many logs."""

    notes: tuple[tuple[Checkpoint, str], ...]

    @classmethod
    def read(cls, path: Path) -> Seen:
        """Read a witness's file, or a system log with such lines; a note not written to its end is left out."""
        data = path.read_bytes()
        lines = _SYSLOG.findall(data)
        try:
            notes = [str(json.loads(line)) for line in lines] if lines else split_notes(data)[0]
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


def _log_id(checkpoint: Checkpoint) -> str:
    return checkpoint.origin.rpartition("/")[2]


def _is_signed_by(note: str, name: str, keys: Sequence[VerifierKey]) -> bool:
    try:
        open_note(note, [VerifierKey(name, key.public) for key in keys])
    except (KeyUnknown, NoteInvalid):
        return False
    return True
