"""The log's state and what changes it: opening, committing, checkpoints, epochs, rotation, closing.

Single-threaded: :mod:`chatsvc.audit.log` owns the one thread that calls it. Every change is tried on a copy of the
position and becomes the position only when it is durable.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatsvc.audit import keys
from chatsvc.audit.checkpoint import Checkpoint, Signer, format_checkpoint
from chatsvc.audit.contents import Contents
from chatsvc.audit.facts import Facts, Result
from chatsvc.audit.mirror import Mirror
from chatsvc.audit.options import AuditOptions
from chatsvc.audit.record import Pseudonyms, Record, describe, format_time, seal
from chatsvc.audit.seal import EPOCH_ACTION, SealKey
from chatsvc.audit.walk import Position, header_of

_MICRO = 1_000_000


@dataclass(frozen=True, slots=True)
class Clock:
    """Time, passed in. ``boot_id`` says which start of the machine ``mono_us`` counts from."""

    wall_us: Callable[[], int]
    mono_us: Callable[[], int]
    boot_id: str


def system_clock() -> Clock:
    """The machine's own."""
    path = Path("/proc/sys/kernel/random/boot_id")
    boot_id = path.read_text(encoding="ascii").strip() if path.exists() else "unknown"
    return Clock(lambda: time.time_ns() // 1000, lambda: time.monotonic_ns() // 1000, boot_id)


@dataclass(slots=True, eq=False)
class Entry:
    """A record on its way: ``seq`` is set when it is durable; ``abandoned`` when nobody waits for that any more."""

    fields: Record
    wall_us: int
    mono_us: int
    seq: int | None = None
    abandoned: bool = False


@dataclass(slots=True)
class Since:
    """What has happened since the last checkpoint, and since the segment began."""

    num_records: int = 0
    checkpoint_us: int = 0
    segment_us: int = 0
    segment_seq: int = 0
    last_note: str | None = None


@dataclass(frozen=True, slots=True)
class Secrets:
    """What signs, seals and hides."""

    signer: Signer
    sealing: SealKey
    pseudonyms: Pseudonyms
    contents: Contents


class Journal:
    """An open log. Make one with :func:`chatsvc.audit.opening.open_journal`."""

    def __init__(self, options: AuditOptions, clock: Clock, mirror: Mirror, secrets: Secrets) -> None:
        self.options = options
        self.clock = clock
        self.pseudonyms = secrets.pseudonyms
        self.mirror = mirror
        self._on_note: Callable[[str], None] = lambda _: None
        self._contents = secrets.contents
        self._signer = secrets.signer
        self._sealing = secrets.sealing
        self._kept_epoch = secrets.sealing.epoch
        self._since = Since()
        self.position = Position(secrets.sealing.log_id, secrets.sealing.epochs, secrets.sealing.epoch)

    def entry(self, stage: str, facts: Facts, result: Result | None = None, **more: Any) -> Entry:
        """A record to be committed, with the time of now."""
        fields = describe(stage, facts, result, self.pseudonyms) | more
        if result is not None and result.content is not None:
            fields |= self._contents.fields(result.content, self.position.log_id)
        return Entry(fields, self.clock.wall_us(), self.clock.mono_us())

    def end_of(self, begin: Entry, result: Result) -> Entry:
        """The end of a committed begin, told by the log itself."""
        facts = Facts(begin.fields["request_id"] or "", begin.fields["action"], begin.fields["actor"])
        return self.entry("end", facts, result, begin=begin.seq)

    # -- what the writer thread does, in this order

    def keep_up(self) -> None:
        """Turn the epoch and rotate the segment, if it is time."""
        now = max(self.clock.wall_us(), self.position.last_us)
        if self._kept_epoch < self.position.epoch:
            self.leave_epoch()
        if self.position.epochs.at(now) > self.position.epoch:
            self._turn_epoch(now)
        since = self._since
        is_due = (
            self.mirror.segment_bytes >= self.options.segment_bytes
            or now - since.segment_us >= self.options.segment_age_s * _MICRO
        )
        if is_due and self.position.seq > since.segment_seq + 1:
            self.checkpoint()
            self.start_segment()

    def commit(self, entries: Sequence[Entry]) -> None:
        """Make records durable, all or none.

        Raises:
            DiskFull, DiskFailed: nothing was committed.
        """
        position = self.position.copy()
        lines, seqs = [], []
        for entry in entries:
            seqs.append(position.seq)
            lines.append(self._compose(position, entry))
        self.mirror.append(b"".join(line + b"\n" for line in lines))
        self.position = position
        self._since.num_records += len(entries)
        for entry, seq in zip(entries, seqs, strict=True):
            entry.seq = seq

    def checkpoint_is_due(self) -> bool:
        """Enough records, or enough time with at least one."""
        since, options = self._since, self.options
        waited_us = self.clock.mono_us() - since.checkpoint_us
        return since.num_records >= options.checkpoint_records or (
            since.num_records > 0 and waited_us >= options.checkpoint_interval_s * _MICRO
        )

    def checkpoint(self) -> None:
        """Sign what there is, if there is anything new."""
        since = self._since
        if not since.num_records:
            return
        frontier = self.position.frontier
        checkpoint = Checkpoint(self._signer.verifier_key.name, frontier.size, frontier.root())
        note = self._signer.sign(format_checkpoint(checkpoint))
        self.mirror.append_note(note)
        since.num_records, since.checkpoint_us, since.last_note = 0, self.clock.mono_us(), note
        self._on_note(note)

    def tell_notes_to(self, on_note: Callable[[str], None]) -> None:
        """From now on, and the one that was made at the start: a log that was rolled back shows itself at once."""
        self._on_note = on_note
        assert self._since.last_note is not None, "a log is opened with a checkpoint"
        on_note(self._since.last_note)

    def continue_from(self, position: Position, since: Since) -> None:
        """Take up a log where it was left."""
        self.position, self._since = position, since

    def close(self) -> None:
        """Let go of the files."""
        self.mirror.close()

    # -- parts

    def _compose(self, position: Position, entry: Entry) -> bytes:
        microseconds = _moment(position, entry)
        record = entry.fields | {
            "log_id": position.log_id,
            "seq": position.seq,
            "ts": format_time(microseconds),
            "mono": entry.mono_us,
            "boot_id": self.clock.boot_id,
            "prev": position.prev.hex(),
            "epoch": position.epoch,
        }
        line = seal(record, self._sealing.mac_key)
        position.take(record, line, microseconds)
        return line

    def own(self, action: str, **details: object) -> Entry:
        """A record about the log itself."""
        return self.entry("event", Facts("", action), Result("allowed", details=details))

    def _turn_epoch(self, now: int) -> None:
        """First a record under the old key that names the next epoch, then the old key goes (seal.py)."""
        entry = self.own(EPOCH_ACTION)
        entry.fields["next_epoch"] = self.position.epochs.at(now)
        entry.wall_us = now
        self.commit([entry])
        self.leave_epoch()

    def leave_epoch(self) -> None:
        """The ratchet's file follows the log; where there is no space for it, the next time.

        First a checkpoint: who opens the log later checks MACs with the present key, and has nothing but checkpoints to
        check the records of earlier epochs with.
        """
        self.checkpoint()
        self._sealing = self._sealing.forward(self.position.epoch)
        keys.save_seal_key(self.options.keys, self._sealing)
        self._kept_epoch = self._sealing.epoch

    def start_segment(self) -> None:
        """Begin a segment with its header."""
        position = self.position.copy()
        entry = self.entry("segment", Facts("", "audit.segment"))
        entry.fields["segment"] = header_of(position, self._signer.verifier_key.name, self._since.last_note)
        line = self._compose(position, entry)
        self.mirror.start_segment(self.position.seq, line + b"\n")
        self._since.segment_us, self._since.segment_seq = position.last_us, self.position.seq
        self._since.num_records += 1
        self.position = position


def _moment(position: Position, entry: Entry) -> int:
    """When a record happened: not before the one before it, and not after its sealing epoch has ended.

    The clock may have gone back, or have entered the next epoch since the writer looked at it.
    """
    if entry.fields["action"] == EPOCH_ACTION:
        return entry.wall_us
    return max(position.last_us, min(entry.wall_us, position.epochs.last_us(position.epoch)))
