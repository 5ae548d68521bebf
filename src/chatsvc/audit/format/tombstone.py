"""A tombstone: a signed note that says which records were pruned, when, and why that was allowed.

::

    chatsvc.local/audit/2f6c…
    tombstone v1
    {"newest":"2026-01-31T23:59:59.000000Z","pruned_at":"…","retention_days":180,"root":"<hex>","size":81920}

``size`` records (all up to a segment's beginning) were removed; ``root`` was their tree's root, so that the remaining
records still lead to the same checkpoints. Its second line is not a number: a tombstone cannot be taken for a
checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chatsvc.audit.format import layout
from chatsvc.audit.format.notes import NoteInvalid, VerifierKey, open_note
from chatsvc.audit.format.record import RecordInvalid, decode, encode

_TITLE = "tombstone v1"


@dataclass(frozen=True, slots=True)
class Tombstone:
    """What was pruned. ``newest`` is the time of the last removed record."""

    origin: str
    size: int
    root: bytes
    newest: str
    pruned_at: str
    retention_days: int


def format_tombstone(stone: Tombstone) -> str:
    """The note's text."""
    facts = {
        "size": stone.size,
        "root": stone.root.hex(),
        "newest": stone.newest,
        "pruned_at": stone.pruned_at,
        "retention_days": stone.retention_days,
    }
    return f"{stone.origin}\n{_TITLE}\n{encode(facts).decode()}\n"


def parse_tombstone(text: str) -> Tombstone:
    """Read a note's text."""
    try:
        origin, title, line, _ = text.split("\n")
        facts = decode(line.encode())
        stone = Tombstone(origin, root=bytes.fromhex(facts.pop("root")), **facts)
        if title == _TITLE and format_tombstone(stone) == text:
            return stone
    except (ValueError, KeyError, TypeError, RecordInvalid):
        pass
    raise NoteInvalid("The tombstone is not well formed.")


def read_tombstone(directory: Path, keys: Sequence[VerifierKey]) -> Tombstone | None:
    """The tombstone of a log, if it has one.

    Raises:
        NoteInvalid, KeyUnknown: it does not verify.
    """
    path = directory / layout.TOMBSTONE
    if not path.exists():
        return None
    try:
        return parse_tombstone(open_note(path.read_bytes().decode(), keys))
    except UnicodeDecodeError:
        raise NoteInvalid("The tombstone is not well formed.") from None
