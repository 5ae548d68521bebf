"""Opens a log: a new one, or an existing one, also after a crash.

Rules, in order: (1) a segment that was never begun durably is dropped; (2) every key named beside the log is trusted
for in ``keys/``, and the last segment follows its own rules, its checkpoints and, behind the last of these, its seal;
(3) it may not hold less than a checkpoint or the sealing key says; (4) an incomplete last line, which was never
acknowledged, is cut off; (5) acts begun and not ended are closed as ``aborted``. A log that breaks a rule is
not written: it is evidence, and continuing it would sign a forger's records.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from chatsvc.audit import keys
from chatsvc.audit.format import layout
from chatsvc.audit.format.notes import KeyUnknown, NoteInvalid, Signer, format_vkey
from chatsvc.audit.format.ratchet import Epochs, SealKey
from chatsvc.audit.format.record import MAX_LINE_BYTES, Pseudonyms, Record, RecordInvalid, decode
from chatsvc.audit.format.replay import Notes, Replay, check_header_note, known_keys, read_notes
from chatsvc.audit.format.rules import RuleChecker, Tampered, position_at
from chatsvc.audit.format.segment import first_line
from chatsvc.audit.options import AuditOptions
from chatsvc.audit.write.contents import Contents
from chatsvc.audit.write.device import Device
from chatsvc.audit.write.journal import Journal, Secrets, Since
from chatsvc.audit.write.mirror import Mirror
from chatsvc.audit.write.timekeeping import Clock
from chatsvc.disk.append import Calls
from chatsvc.errors import OperatorError

_MICRO = 1_000_000
_ORPHANED = "the process ended before the act did"
_REMEDY = "Run 'chatsvc audit verify', keep the directory as evidence, and move it away to begin a new log."


def open_mirror(options: AuditOptions, calls: Calls, opened: ExitStack) -> Mirror:
    """The devices that can be opened, at least one; ``opened`` closes them.

    Raises:
        OSError, LockHeld: none can be opened, or another process writes one of them.
    """
    devices: list[Device] = []
    missing: dict[Path, OSError] = {}
    for directory in options.directories:
        try:
            devices.append(Device(directory, options.lock_timeout_s, calls))
        except OSError as error:
            missing[directory] = error
        else:
            opened.callback(devices[-1].close)
    if not devices:
        raise missing[options.directory]
    return Mirror(devices, calls, {path: str(error) for path, error in missing.items()})


def open_journal(options: AuditOptions, clock: Clock, mirror: Mirror) -> Journal:
    """Open or begin the log, from the device that holds most of it.

    Raises:
        OperatorError: the log, or a key of it, is damaged or missing; the message says what to do.
        DiskFull, DiskFailed: the records of the start cannot be written.
    """
    directory = mirror.choose_leader().directory
    segments = layout.segments(directory)
    if segments and not _begun_durably(segments[-1]):  # (1)
        _drop(segments.pop())
    if segments:
        return _resume(options, clock, mirror, segments[-1])
    if (directory / layout.VKEY).exists():
        raise OperatorError(f"The audit log's segments are missing from {directory}. {_REMEDY}")
    return _begin(options, clock, mirror)


def _begun_durably(segment: Path) -> bool:
    notes = layout.checkpoints_of(segment)
    with segment.open("rb") as file:
        return file.readline(MAX_LINE_BYTES).endswith(b"\n") or (notes.exists() and notes.stat().st_size > 0)


def _drop(segment: Path) -> None:
    segment.unlink()
    layout.checkpoints_of(segment).unlink(missing_ok=True)


def _begin(options: AuditOptions, clock: Clock, mirror: Mirror) -> Journal:
    """Begin a new log. ``audit.vkey`` is written last: a directory that has it but no segments has lost them."""
    log_id = os.urandom(16).hex()
    sealing = SealKey(log_id, Epochs(clock.wall_us() // _MICRO, options.epoch_s), 0, os.urandom(32))
    keys.begin_sealing(options.keys, sealing)
    signer = Signer(f"{options.origin}/{log_id}", keys.signing_key(options.keys, create=True))
    pseudonyms = Pseudonyms(keys.hmac_key(options.keys, create=True))
    contents = Contents(options.level, options.auditor_key)
    journal = Journal(options, clock, mirror, Secrets(signer, sealing, pseudonyms, contents))
    journal.start_segment()
    journal.commit([journal.own("audit.start", log="new", pid=os.getpid(), **options.about)])
    journal.checkpoint()
    _name_key(mirror, signer, options)
    return journal


def _resume(options: AuditOptions, clock: Clock, mirror: Mirror, segment: Path) -> Journal:
    header = _header(segment)
    sealing = keys.seal_key(options.keys, header["log_id"])
    signer = Signer(header["segment"]["origin"], keys.signing_key(options.keys, create=False))
    pseudonyms = Pseudonyms(keys.hmac_key(options.keys, create=False))
    replay, notes, last = _replayed(segment, signer, sealing, keys.trusted_keys(options.keys))  # (2) (3)
    position = replay.walk.position
    if sealing.epoch > position.epoch:  # (3)
        raise OperatorError(
            f"The audit log in {options.directory} is older than its sealing key: it was rolled back. {_REMEDY}"
        )
    contents = Contents(options.level, options.auditor_key)
    journal = Journal(options, clock, mirror, Secrets(signer, sealing, pseudonyms, contents))
    since = Since(
        num_records=position.seq - max(replay.covered, header["seq"]),
        segment_us=position.last_us,
        segment_seq=header["seq"],
        last_note=notes.notes[-1] if notes.notes else header["segment"]["checkpoint"],
    )
    journal.continue_from(position, since, last)
    mirror.resume(segment, replay.good_bytes, notes.good_bytes)  # (4)
    if (
        sealing.epoch < position.epoch
    ):  # the log has the new epoch, but the process ended before the key's file was replaced
        journal.leave_epoch()
    _tidy(journal, len(replay.torn))
    _name_key(mirror, signer, options)
    return journal


def _header(segment: Path) -> Record:
    try:
        line = first_line(segment)
        position_at(line)
        return decode(line)
    except RecordInvalid as error:
        raise OperatorError(f"{segment} is damaged: {error.message} {_REMEDY}") from None


def _require_trusted(directory: Path, trusted: frozenset[bytes]) -> None:
    """Refuse a log that names a key that is not in ``keys/``."""
    untrusted = [key for key in known_keys(directory) if key.public not in trusted]
    if untrusted:
        named = ", ".join(f"{key.name} {key.fingerprint}" for key in untrusted)
        raise OperatorError(
            f"{directory / layout.VKEY} names a key that is not in keys/: {named}. If it is one that you "
            f"replaced, add its line to keys/audit-signing.pub. Otherwise the log was forged. {_REMEDY}"
        )


def _replayed(
    segment: Path, signer: Signer, sealing: SealKey, trusted: frozenset[bytes]
) -> tuple[Replay, Notes, Record]:
    """Check the last segment with its checkpoints and the MACs of the current epoch; also returns its last record."""
    num_unsealed = 0  # all records before this one may be of epochs whose key is gone
    try:
        _require_trusted(segment.parent, trusted)
        believed = [*known_keys(segment.parent), signer.verifier_key]
        position = position_at(first_line(segment))
        num_covered = position.seq  # by the checkpoint in the header
        replay = Replay(RuleChecker(position, sealing, only_from_its_epoch=True))
        notes = read_notes(segment, believed)
        replay.expect(notes.checkpoints)
        last: Record = {}
        for record in replay.segment(segment):
            last = record
            if record["stage"] == "segment":
                check_header_note(record, believed)
            if record["epoch"] < sealing.epoch:
                num_unsealed = record["seq"] + 1
        _require_covered(num_unsealed, max(num_covered, replay.covered))
    except (Tampered, RecordInvalid, NoteInvalid, KeyUnknown) as error:
        raise OperatorError(f"The audit log in {segment.parent} is damaged: {error.message} {_REMEDY}") from None
    if replay.due:
        raise OperatorError(
            f"The audit log in {segment.parent} has {replay.walk.position.seq} records, but a checkpoint of "
            f"{replay.due[0].size} was signed. {_REMEDY}"
        )
    return replay, notes, last


def _require_covered(num_unsealed: int, num_covered: int) -> None:
    if num_unsealed > num_covered:
        raise Tampered(num_covered, "no checkpoint covers it, and the key of its sealing epoch is gone")


def _tidy(journal: Journal, torn_bytes: int) -> None:
    journal.keep_up()
    left_open = sorted(journal.position.open.items())
    orphans = [journal.aborted(seq, begin, _ORPHANED) for seq, begin in left_open]  # (5)
    start = journal.own(
        "audit.start",
        log="resumed",
        pid=os.getpid(),
        torn_bytes=torn_bytes,
        num_orphans=len(orphans),
        **journal.options.about,
    )
    journal.commit([*orphans, start])
    journal.checkpoint()


def _name_key(mirror: Mirror, signer: Signer, options: AuditOptions) -> None:
    """Write the public key to ``keys/``, which a verifier trusts, and beside the log, which only names it."""
    keys.trust(options.keys, signer.verifier_key)
    line = format_vkey(signer.verifier_key) + "\n"
    paths = [directory / layout.VKEY for directory in mirror.directories]
    known = next((path.read_text(encoding="utf-8") for path in paths if path.exists()), "")
    if line not in known:
        known += line
    if any(not path.exists() or path.read_text(encoding="utf-8") != known for path in paths):
        mirror.put(layout.VKEY, known.encode())
