"""Checks segments line by line, in constant memory, against the rules and their checkpoints. Pure but for reading."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from chatsvc.audit.format.layout import VKEY, checkpoints_of
from chatsvc.audit.format.notes import (
    Checkpoint,
    KeyUnknown,
    NoteInvalid,
    VerifierKey,
    open_note,
    parse_checkpoint,
    read_vkeys,
    split_notes,
)
from chatsvc.audit.format.record import MAX_LINE_BYTES, Record, RecordInvalid, decode
from chatsvc.audit.format.rules import ChainBroken, RuleChecker, Tampered
from chatsvc.audit.format.tree import Frontier, leaf_hash


@dataclass(frozen=True, slots=True)
class Notes:
    """A segment's checkpoints, verified, and how many bytes of the file they take."""

    checkpoints: tuple[Checkpoint, ...]
    notes: tuple[str, ...]
    good_bytes: int


def known_keys(directory: Path) -> list[VerifierKey]:
    """The public keys that ``audit.vkey`` beside a log names; whether to trust them is the caller's decision.

    There are several after the operator has replaced the signing key.

    Raises:
        NoteInvalid: a line is no key.
    """
    path = directory / VKEY
    return read_vkeys(path) if path.exists() else []


def read_notes(segment: Path, keys: Iterable[VerifierKey]) -> Notes:
    """The checkpoints of a segment.

    Raises:
        NoteInvalid, KeyUnknown: a note does not verify.
    """
    path = checkpoints_of(segment)
    data = path.read_bytes() if path.exists() else b""
    notes, torn = split_notes(data)
    keys = list(keys)
    return Notes(tuple(read_checkpoint(note, keys) for note in notes), tuple(notes), len(data) - len(torn))


def read_checkpoint(note: str, keys: Iterable[VerifierKey]) -> Checkpoint:
    """The checkpoint in a signed note, verified by a key of the same name as its origin.

    Raises:
        NoteInvalid, KeyUnknown: it does not verify.
    """
    keys = list(keys)
    checkpoint = parse_checkpoint(open_note(note, keys))
    try:
        open_note(note, [key for key in keys if key.name == checkpoint.origin])
    except KeyUnknown:  # a key of one log is not trusted for another
        raise NoteInvalid(f"The checkpoint of {checkpoint.origin} is signed under another name.") from None
    return checkpoint


def check_header_note(record: Record, keys: Iterable[VerifierKey]) -> None:
    """Check that a segment's header has the checkpoint that ended the previous segment.

    Raises:
        Tampered, NoteInvalid, KeyUnknown: it does not, or that note does not verify.
    """
    note = record["segment"]["checkpoint"]
    if note is None and record["seq"] == 0:
        return
    checkpoint = read_checkpoint(str(note), keys)
    before = Frontier(record["seq"], [bytes.fromhex(each) for each in record["segment"]["tree"]])
    if checkpoint != Checkpoint(checkpoint.origin, record["seq"], before.root()):
        raise Tampered(record["seq"], "the checkpoint in the segment record does not match the records before it")


class Replay:
    """Goes through segments in order. ``due`` are checkpoints that the records have not reached yet."""

    def __init__(self, walk: RuleChecker) -> None:
        self.walk = walk
        self.due: list[Checkpoint] = []
        self.covered = 0  # number of records that a compared checkpoint covers
        self.good_bytes = 0
        self.torn = b""

    def expect(self, checkpoints: Iterable[Checkpoint]) -> None:
        """Add checkpoints that the tree must match when it reaches their sizes."""
        for checkpoint in checkpoints:
            if checkpoint.size == self.walk.position.seq and checkpoint.size:
                self._compare(checkpoint)
            else:
                self.due.append(checkpoint)
        self.due.sort(key=lambda each: each.size, reverse=True)

    def segment(self, path: Path, start: int = 0) -> Iterator[Record]:
        """The records of a segment, each checked. Afterwards ``torn`` is what follows the last whole line."""
        with path.open("rb") as file:
            file.seek(start)
            yield from self.lines(file, start)

    def lines(self, file: BinaryIO, start: int = 0) -> Iterator[Record]:
        """The same for an open file, positioned at offset ``start`` of a segment."""
        self.good_bytes, self.torn = start, b""
        while line := file.readline(MAX_LINE_BYTES):
            if not line.endswith(b"\n"):
                self.torn = line
                return
            try:
                yield self.line(line[:-1], first=self.good_bytes == 0)
            except ChainBroken as broken:
                raise _blamed(broken, line[:-1], file.readline(MAX_LINE_BYTES)) from None
            self.good_bytes += len(line)

    def line(self, line: bytes, *, first: bool = False) -> Record:
        """Check a line, and the checkpoints that end with it."""
        record = self.walk.step(line, first=first)
        while self.due and self.due[-1].size <= self.walk.position.seq:
            self._compare(self.due.pop())
        return record

    def _compare(self, checkpoint: Checkpoint) -> None:
        seq = self.walk.position.seq
        if checkpoint.origin.rpartition("/")[2] != self.walk.position.log_id:
            raise Tampered(seq - 1, f"a checkpoint of {checkpoint.origin} is kept with the records of another log")
        if checkpoint.size != seq:
            raise Tampered(checkpoint.size, f"a checkpoint of {checkpoint.size} records is kept with later records")
        if checkpoint.root != self.walk.position.frontier.root():
            # The hash chain is intact up to here, so if one record was changed, it is the last.
            why = f"records {self.covered} to {seq - 1} do not match the checkpoint of {seq} records"
            raise Tampered(seq - 1, why)
        self.covered = seq


def _blamed(broken: ChainBroken, line: bytes, following: bytes) -> Tampered:
    """If the next record follows from this one, this one is unchanged and the one before it was changed."""
    try:
        intact = decode(following[:-1])["prev"] == leaf_hash(line).hex()
    except (RecordInvalid, KeyError):
        intact = False
    if intact:
        return Tampered(broken.seq - 1, f"it was changed: record {broken.seq} does not follow from it")
    return broken
