"""Witnesses the logs of other replicas: keeps the last head (signed checkpoint) of each, which may only grow.

A submitted head is accepted in these steps: (1) its note is signed by a pinned key, whose name is the log's
origin; (2) the sender knows the head that is held here; (3) it is not shorter, and not another one of the same length;
(4) RFC 6962: the held tree is a prefix of the new one; (5) it is durable. Only then is it acknowledged. One head
is enough, because each was proved to continue the one before it.

The shape follows c2sp.org/tlog-witness; the JSON fields are this service's own (``http/api/audit.py``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from chatsvc.audit.format.notes import Checkpoint, NoteInvalid, VerifierKey, read_vkeys
from chatsvc.audit.format.replay import read_checkpoint
from chatsvc.audit.format.tree import ProofInvalid, verify_consistency
from chatsvc.audit.witness.seen import checkpoint_in
from chatsvc.disk.durable import replace_file
from chatsvc.disk.lock import Lock, LockHeld
from chatsvc.errors import AuditUnavailable, ChatsvcError

_LOCK_S = 5
_MAX_NAME = 240  # of a file


class HeadRefused(ChatsvcError):
    """The head does not continue the one held for that log."""

    code = "witness_refuses"


@dataclass(frozen=True, slots=True)
class Submission:
    """A signed checkpoint, the size that the sender assumes is held here, and the proof from that size."""

    note: str
    old_size: int
    proof: Sequence[bytes]


class HeldHeads:
    """The heads held: one file a log, ``<origin, quoted>.checkpoints``; ``audit verify --witness`` takes it."""

    def __init__(self, directory: Path, pinned: Path | None) -> None:
        self._directory = directory
        self._pinned = pinned

    def head(self, origin: str) -> Checkpoint | None:
        """The last head of a log; None if none is held.

        Raises:
            AuditUnavailable: the held head cannot be read.
        """
        path = self._path(origin)
        try:
            return checkpoint_in(path.read_text(encoding="utf-8").rstrip("\n") + "\n")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, NoteInvalid) as error:
            raise AuditUnavailable("The held head cannot be read.") from error

    def take(self, submission: Submission) -> Checkpoint:
        """Hold a head, if it continues the one that is held.

        Raises:
            NoteInvalid: it is not a signed checkpoint.
            KeyUnknown: it is signed by no pinned key.
            HeadRefused: it does not continue the held head.
            AuditUnavailable: it cannot be stored at present.
        """
        checkpoint = read_checkpoint(submission.note, self._keys())  # (1)
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with Lock(self._directory / "witness.lock", _LOCK_S):
                _check(self.head(checkpoint.origin), checkpoint, submission)
                note = submission.note + "\n"  # a file of notes: each followed by an empty line
                replace_file(self._path(checkpoint.origin), note.encode(), 0o640)  # (5)
        except (LockHeld, OSError) as error:
            raise AuditUnavailable("The head cannot be stored at present; send it again.") from error
        return checkpoint

    def _keys(self) -> list[VerifierKey]:
        """Read for each submission, so that a new replica's key needs no restart."""
        try:
            return read_vkeys(self._pinned) if self._pinned else []
        except (OSError, NoteInvalid) as error:
            raise AuditUnavailable("The keys of audit.witnessed_keys_file cannot be read.") from error

    def _path(self, origin: str) -> Path:
        name = quote(origin, safe="")
        if len(name) > _MAX_NAME:
            name = hashlib.sha256(origin.encode()).hexdigest()
        return self._directory / f"{name}.checkpoints"


def _check(held: Checkpoint | None, new: Checkpoint, submission: Submission) -> None:
    size = held.size if held else 0
    if submission.old_size != size:  # (2)
        raise HeadRefused(f"The held head has {size} records.")
    if held is None:
        if submission.proof:
            raise HeadRefused("No head of this log is held, so the proof must be empty.")
        return
    if new.size < size or (new.size == size and new.root != held.root):  # (3)
        raise HeadRefused(f"The held head has {size} records; this one is older, or of another log of the same length.")
    try:
        verify_consistency(size, new.size, submission.proof, held.root, new.root)  # (4)
    except ProofInvalid:
        raise HeadRefused(f"The proof does not show that the log begins with the {size} records seen here.") from None
