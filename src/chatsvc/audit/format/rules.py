"""The rules between a record and the ones before it. The writer follows them, the verifier checks them.

1. A line is a record in canonical JSON, of a known version.
2. ``seq`` counts from 0 without a gap; ``log_id`` never changes.
3. ``prev`` is the RFC 6962 leaf hash of the line before.
4. Log time never goes back: it is ``ts`` less all steps of the wall clock so far. Only an ``audit.clock`` record may
   state that the clock was set (``clock_step_us``, at least a minute), and must do so; its ``ts`` is the new time.
5. ``epoch`` is the epoch of the log time; it changes only by an ``audit.epoch`` record that names the next one.
6. A segment begins with a ``segment`` record, which repeats the tree's frontier and the requests that are open.
7. An ``end`` names (``begin``) a begin that is open, and closes it.
8. With the sealing key: ``mac`` is right for the epoch.

Knows nothing about files, signatures or threads.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from chatsvc.audit.format.ratchet import EPOCH_ACTION, Epochs, SealKey
from chatsvc.audit.format.record import (
    FIRST_PREV,
    VERSION,
    Record,
    RecordInvalid,
    decode,
    mac_fits,
    parse_time,
)
from chatsvc.audit.format.tree import Frontier, ProofInvalid, leaf_hash
from chatsvc.errors import ChatsvcError

OPEN_FIELDS = ("request_id", "action", "actor")
CLOCK_ACTION = "audit.clock"
LEAST_STEP_US = 60_000_000  # smaller corrections of the wall clock are not recorded


class Tampered(ChatsvcError):
    """A rule does not hold. ``seq`` names the record."""

    code = "audit_tampered"

    def __init__(self, seq: int, why: str) -> None:
        super().__init__(f"record {seq}: {why}")
        self.seq = seq


class ChainBroken(Tampered):
    """Rule 3: either this record or the one before it was changed; the next record shows which."""


@dataclass(slots=True)
class Position:
    """A position in a log: all that the next record depends on."""

    log_id: str
    epochs: Epochs
    epoch: int
    frontier: Frontier = field(default_factory=Frontier)
    prev: bytes = FIRST_PREV
    last_us: int = 0  # log time of the last record
    clock_us: int = 0  # wall time less log time: the sum of all steps of the wall clock
    num_steps: int = 0  # of the wall clock
    next_epoch: int | None = None
    open: dict[int, Record] = field(default_factory=dict)

    @property
    def seq(self) -> int:
        """The next record's number."""
        return self.frontier.size

    def copy(self) -> Position:
        """A copy, to apply a change tentatively."""
        return replace(self, frontier=self.frontier.copy(), open=dict(self.open))

    def log_time(self, record: Record) -> int:
        """The record's log time, microseconds."""
        return parse_time(record["ts"]) - self.clock_us - int(record.get("clock_step_us", 0))

    def take(self, record: Record, line: bytes) -> None:
        """Advance past a record that is in the log."""
        stage = record["stage"]
        if stage == "begin":
            self.open[self.seq] = {name: record[name] for name in OPEN_FIELDS}
        elif stage == "end":
            del self.open[record["begin"]]
        self.prev = leaf_hash(line)
        self.frontier.append(self.prev)
        self.last_us = self.log_time(record)
        if "clock_step_us" in record:
            self.clock_us, self.num_steps = self.clock_us + record["clock_step_us"], self.num_steps + 1
        self.next_epoch = record.get("next_epoch")
        self.epoch = record["epoch"] if self.next_epoch is None else self.next_epoch


def header_of(position: Position, origin: str, checkpoint: str | None) -> dict[str, Any]:
    """A segment's first record: the state that all earlier records led to."""
    clock = {"clock": {"sum_us": position.clock_us, "num_steps": position.num_steps}} if position.num_steps else {}
    return clock | {
        "origin": origin,
        "checkpoint": checkpoint,
        "tree": [each.hex() for each in position.frontier.hashes],
        "open": [{"seq": seq, **position.open[seq]} for seq in sorted(position.open)],
        "seal": {"start": position.epochs.start_s, "length": position.epochs.length_s},
    }


def position_at(line: bytes) -> Position:
    """The position in front of a segment's first line, as that line states it.

    It is a claim until a checkpoint that covers it has been compared.
    """
    try:
        record = decode(line)
        return position_of(record, record["seq"])
    except (RecordInvalid, ProofInvalid, KeyError, TypeError, ValueError, AttributeError):
        raise RecordInvalid("The first line of a segment is not a segment record.") from None


def position_of(record: Record, seq: int) -> Position:
    """The position in front of record ``seq``, from a segment record or the head of an export."""
    header, seal = record["segment"], record["segment"]["seal"]
    clock = header.get("clock", {"sum_us": 0, "num_steps": 0})
    return Position(
        record["log_id"],
        Epochs(seal["start"], seal["length"]),
        record["epoch"],
        Frontier(seq, [bytes.fromhex(each) for each in header["tree"]]),
        bytes.fromhex(record["prev"]),
        clock_us=int(clock["sum_us"]),
        num_steps=int(clock["num_steps"]),
        open={each["seq"]: {name: each[name] for name in OPEN_FIELDS} for each in header["open"]},
    )


class RuleChecker:
    """Checks the rules, numbered as above, line by line."""

    def __init__(
        self, position: Position, seal_key: SealKey | None = None, *, only_from_its_epoch: bool = False
    ) -> None:
        """``only_from_its_epoch``: the key is of a later epoch, and earlier records are not checked against it."""
        self.position = position
        self._seal = seal_key
        self._first_epoch = seal_key.epoch if seal_key and only_from_its_epoch else 0
        self._mac_key = b""
        self._mac_epoch = -1

    def step(self, line: bytes, *, first: bool = False) -> Record:
        """Check one line (without its newline) and advance; ``first``: it is the first of its segment.

        Raises:
            Tampered: with the number of the record that should have been here.
        """
        position = self.position
        try:
            record = decode(line)  # (1)
            self._check_sequence(record)
            self._check_meaning(record, first=first)
            self._check_seal(record, line)
            position.take(record, line)
        except (RecordInvalid, KeyError, TypeError, ValueError, AttributeError):
            raise Tampered(position.seq, "the line is not a record in canonical JSON") from None  # (1)
        return record

    def _check_sequence(self, record: Record) -> None:
        position = self.position
        if record["v"] != VERSION:  # (1)
            raise Tampered(position.seq, "its version is unknown")
        if record["seq"] != position.seq or record["log_id"] != position.log_id:  # (2)
            raise Tampered(position.seq, f"record {record['seq']} of log {record['log_id']} stands in its position")
        if record["prev"] != position.prev.hex():  # (3)
            raise ChainBroken(position.seq, "it does not follow from the record before it")
        if not _clock_fits(record):  # (4)
            raise Tampered(position.seq, "a step of the clock is not recorded as one")
        log_time = position.log_time(record)
        if log_time < position.last_us:  # (4)
            raise Tampered(position.seq, "it is earlier than the record before it")
        if not self._epoch_fits(record, log_time):  # (5)
            raise Tampered(position.seq, "its sealing epoch does not match its time")

    def _check_meaning(self, record: Record, *, first: bool) -> None:
        position, stage = self.position, record["stage"]
        if (stage == "segment") is not first:  # (6)
            raise Tampered(position.seq, "a segment must begin with a segment record and hold no other")
        if first and not self._header_fits(record["segment"]):
            raise Tampered(position.seq, "the segment record does not repeat what came before it")
        if stage == "end" and record["begin"] not in position.open:  # (7)
            raise Tampered(position.seq, f"it ends record {record['begin']}, which is not open")

    def _header_fits(self, header: Record) -> bool:
        return header_of(self.position, header["origin"], header["checkpoint"]) == header

    def _epoch_fits(self, record: Record, log_time: int) -> bool:
        position, epoch = self.position, record["epoch"]
        now = position.epochs.at(log_time)
        if record["action"] == EPOCH_ACTION:
            return bool(epoch == position.epoch and epoch < record["next_epoch"] == now)
        return bool(epoch == position.epoch == now and "next_epoch" not in record)

    def _check_seal(self, record: Record, line: bytes) -> None:
        epoch = record["epoch"]
        if self._seal is None or epoch < self._first_epoch:
            return
        if epoch != self._mac_epoch and epoch >= self._seal.epoch:
            self._seal = self._seal.forward(epoch)
            self._mac_key, self._mac_epoch = self._seal.mac_key, epoch
        if epoch != self._mac_epoch or not mac_fits(line, record["mac"], self._mac_key):  # (8)
            raise Tampered(self.position.seq, "its seal is not right for its epoch")


def _clock_fits(record: Record) -> bool:
    step = record.get("clock_step_us")
    if record["action"] != CLOCK_ACTION:
        return step is None
    return type(step) is int and abs(step) >= LEAST_STEP_US
