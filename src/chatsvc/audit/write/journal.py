"""The state of an open log, and its changes: commits, checkpoints, epochs, rotation, closing.

Single-threaded: :mod:`chatsvc.audit.log` owns the one thread that calls it. Every change is made on a copy of the
position, which replaces the position once the change is durable.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from chatsvc.audit import keys
from chatsvc.audit.facts import Facts, Result
from chatsvc.audit.format.notes import Checkpoint, Signer, format_checkpoint
from chatsvc.audit.format.ratchet import EPOCH_ACTION, SealKey
from chatsvc.audit.format.record import Pseudonyms, Record, describe, format_time, parse_time, seal
from chatsvc.audit.format.rules import CLOCK_ACTION, Position, header_of
from chatsvc.audit.options import AuditOptions
from chatsvc.audit.write.contents import Contents
from chatsvc.audit.write.mirror import Mirror
from chatsvc.audit.write.timekeeping import Clock, Moment, Timekeeper

_MICRO = 1_000_000
_ALARM_US = 3600 * _MICRO


@dataclass(slots=True, eq=False)
class Draft:
    """A record to be written. ``seq`` is set once it is durable, ``abandoned`` once its caller has given up waiting."""

    fields: Record
    moment: Moment
    seq: int | None = None
    abandoned: bool = False


@dataclass(slots=True)
class Since:
    """Counts and times since the last checkpoint, and since the segment began."""

    num_records: int = 0
    checkpoint_us: int = 0
    segment_us: int = 0
    segment_seq: int = 0
    last_note: str | None = None


@dataclass(frozen=True, slots=True)
class Secrets:
    """The keys: for signing checkpoints, sealing records, hashing names and encrypting contents."""

    signer: Signer
    sealing: SealKey
    pseudonyms: Pseudonyms
    contents: Contents


class Journal:
    """An open log. Make one with :func:`chatsvc.audit.write.opening.open_journal`."""

    def __init__(self, options: AuditOptions, clock: Clock, mirror: Mirror, secrets: Secrets) -> None:
        self.options = options
        self.time = Timekeeper(clock)
        self.pseudonyms = secrets.pseudonyms
        self.mirror = mirror
        self._on_note: Callable[[str], None] = lambda _: None
        self._steps: deque[tuple[int, str]] = deque(maxlen=16)  # microseconds since boot, and a sentence
        self._contents = secrets.contents
        self._signer = secrets.signer
        self._sealing = secrets.sealing
        self._kept_epoch = secrets.sealing.epoch
        self._since = Since()
        self.position = Position(secrets.sealing.log_id, secrets.sealing.epochs, secrets.sealing.epoch)

    def draft(self, stage: str, facts: Facts, result: Result | None = None, **more: Any) -> Draft:
        """A record to be committed, with the current time."""
        fields = describe(stage, facts, result, self.pseudonyms) | more
        if result is not None and result.content is not None:
            fields |= self._contents.fields(result.content, self.position.log_id)
        return Draft(fields, self.time.now())

    def aborted(self, seq: int | None, begin: Record, reason: str) -> Draft:
        """An ``aborted`` end for a committed begin whose caller or process has ended."""
        facts = Facts(begin["request_id"] or "", begin["action"], begin["actor"])
        return self.draft("end", facts, Result("aborted", reason=reason), begin=seq)

    # -- what the writer thread does, in this order

    def keep_up(self) -> None:
        """If due: change the epoch, record a step of the clock, rotate the segment."""
        moment = self.time.now()
        now = self._log_time(self.position, moment)
        if self._kept_epoch < self.position.epoch:
            self.leave_epoch()
        if self.position.epochs.at(now) > self.position.epoch:
            self._turn_epoch(now)
        if self.time.step(moment):
            self._tell_step(moment)
        since = self._since
        is_due = (
            self.mirror.segment_bytes >= self.options.segment_bytes
            or now - since.segment_us >= self.options.segment_age_s * _MICRO
        )
        if is_due and self.position.seq > since.segment_seq + 1:
            self.checkpoint()
            self.start_segment()

    def commit(self, drafts: Sequence[Draft]) -> None:
        """Make records durable, all or none.

        Raises:
            DiskFull, DiskFailed: nothing was committed.
        """
        position = self.position.copy()
        lines, seqs = [], []
        for draft in drafts:
            seqs.append(position.seq)
            lines.append(self._compose(position, draft))
        self.mirror.append(b"".join(line + b"\n" for line in lines))
        self.position = position
        self._since.num_records += len(drafts)
        for draft, seq in zip(drafts, seqs, strict=True):
            draft.seq = seq

    def checkpoint_is_due(self) -> bool:
        """Enough records, or enough time with at least one."""
        since, options = self._since, self.options
        waited_us = self.time.now().mono_us - since.checkpoint_us
        return since.num_records >= options.checkpoint_records or (
            since.num_records > 0 and waited_us >= options.checkpoint_interval_s * _MICRO
        )

    def checkpoint(self) -> None:
        """Sign the current tree, if there are records since the last checkpoint."""
        since = self._since
        if not since.num_records:
            return
        frontier = self.position.frontier
        checkpoint = Checkpoint(self._signer.verifier_key.name, frontier.size, frontier.root())
        note = self._signer.sign(format_checkpoint(checkpoint))
        self.mirror.append_note(note)
        since.num_records, since.checkpoint_us, since.last_note = 0, self.time.now().mono_us, note
        self._on_note(note)

    def tell_notes_to(self, on_note: Callable[[str], None]) -> None:
        """Pass on every checkpoint, starting with the one made at start, so that a rollback is noticed at once."""
        self._on_note = on_note
        assert self._since.last_note is not None, "a log is opened with a checkpoint"
        on_note(self._since.last_note)

    def continue_from(self, position: Position, since: Since, last: Record) -> None:
        """Continue a log where it ended; ``last`` is its last record."""
        self.position, self._since = position, since
        self.time.resume(Moment(parse_time(last["ts"]), last["mono"]), last["boot_id"])

    def alarms(self) -> list[str]:
        """A sentence for every step of the wall clock in the last hour."""
        since = self.time.now().mono_us - _ALARM_US
        return [what for when, what in list(self._steps) if when >= since]

    def close(self) -> None:
        """Close the files."""
        self.mirror.close()

    # -- parts

    def _compose(self, position: Position, draft: Draft) -> bytes:
        action, log_time = draft.fields["action"], self._log_time(position, draft.moment)
        if action != EPOCH_ACTION:  # the clock may have entered the next epoch since the writer last read it
            log_time = max(position.last_us, min(log_time, position.epochs.last_us(position.epoch)))
        wall = log_time + position.clock_us + draft.fields.get("clock_step_us", 0)
        record = draft.fields | {
            "log_id": position.log_id,
            "seq": position.seq,
            "ts": format_time(wall),
            "mono": draft.moment.mono_us,
            "boot_id": self.time.clock.boot_id,
            "prev": position.prev.hex(),
            "epoch": position.epoch,
        }
        line = seal(record, self._sealing.mac_key)
        position.take(record, line)
        return line

    def _log_time(self, position: Position, moment: Moment) -> int:
        """The log time of a moment: not before the last record, whatever the clock says within a minute."""
        return max(self.time.wall_of(moment) - position.clock_us, position.last_us)

    def own(self, action: str, **details: object) -> Draft:
        """A record about the log itself."""
        return self.draft("event", Facts("", action), Result("allowed", details=details))

    def _tell_step(self, moment: Moment) -> None:
        """Record a step of the clock: later records have the new wall time, and log time is not affected."""
        step_us = self.time.step(moment)
        before = self.time.wall_of(moment)
        details = {"before": format_time(before), "after": format_time(moment.wall_us)}
        reason = f"the wall clock was set {'forward' if step_us > 0 else 'back'} by {abs(step_us) // _MICRO} s"
        draft = self.draft("event", Facts("", CLOCK_ACTION), Result("error", reason=reason, details=details))
        draft.moment = moment
        draft.fields["clock_step_us"] = step_us
        self.commit([draft])
        self.time.take_step(moment)
        self._steps.append((moment.mono_us, f"{reason}; find out what set it"))

    def _turn_epoch(self, now: int) -> None:
        """Write a record under the old key that names the next epoch, then erase the old key (format/ratchet.py)."""
        draft = self.own(EPOCH_ACTION)
        draft.fields["next_epoch"] = self.position.epochs.at(now)
        draft.moment = replace(draft.moment, wall_us=now + self.position.clock_us)
        self.commit([draft])
        self.leave_epoch()

    def leave_epoch(self) -> None:
        """Replace the sealing key by that of the current epoch; if the disk is full, :meth:`keep_up` tries again.

        A checkpoint comes first: after a restart, records of earlier epochs can only be checked by checkpoints, because
        their key is gone.
        """
        self.checkpoint()
        self._sealing = self._sealing.forward(self.position.epoch)
        keys.save_seal_key(self.options.keys, self._sealing)
        self._kept_epoch = self._sealing.epoch

    def start_segment(self) -> None:
        """Begin a segment with its header."""
        position = self.position.copy()
        draft = self.draft("segment", Facts("", "audit.segment"))
        draft.fields["segment"] = header_of(position, self._signer.verifier_key.name, self._since.last_note)
        line = self._compose(position, draft)
        self.mirror.start_segment(self.position.seq, line + b"\n")
        self._since.segment_us, self._since.segment_seq = position.last_us, self.position.seq
        self._since.num_records += 1
        self.position = position
