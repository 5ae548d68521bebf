"""The files in a log's directory.

::

    audit-000000000000.jsonl         a segment; the number is its first record's
    audit-000000000000.checkpoints   the signed notes that were made while it was written
    audit.vkey                       public keys that sign this log, one a line
    audit.tombstone                  a signed note about segments that were pruned
    audit.lock                       locked by the one process that writes
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

VKEY = "audit.vkey"
TOMBSTONE = "audit.tombstone"
LOCK = "audit.lock"
_SEGMENT = re.compile(r"audit-([0-9]{12,})\.jsonl")


def segment_name(first_seq: int) -> str:
    """The name of the segment that begins with this record."""
    return f"audit-{first_seq:012d}.jsonl"


def first_seq(segment: Path) -> int | None:
    """The number in a segment's name; None if it is not named like one."""
    match = _SEGMENT.fullmatch(segment.name)
    return int(match[1]) if match else None


def checkpoints_of(segment: Path) -> Path:
    """The file of notes that belongs to a segment."""
    return segment.with_suffix(".checkpoints")


def segments(directory: Path) -> list[Path]:
    """All segments, oldest first."""
    found = [(seq, path) for path in directory.glob("audit-*.jsonl") if (seq := first_seq(path)) is not None]
    return [path for _, path in sorted(found)]


def files_of(directory: Path, segments: Sequence[Path]) -> list[Path]:
    """Every file that a verifier reads, whether or not it exists."""
    notes = [checkpoints_of(segment) for segment in segments]
    return [directory / VKEY, directory / TOMBSTONE, *segments, *notes]


def logs(directory: Path) -> list[Path]:
    """The directories below (and with) this one that hold a log."""
    candidates = [directory, *sorted(path for path in directory.glob("*") if path.is_dir())]
    return [path for path in candidates if (path / VKEY).exists() or segments(path)]
