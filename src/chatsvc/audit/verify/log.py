"""Verifies a log offline: streaming, in constant memory, with public keys only.

1. Every key that ``audit.vkey`` names is trusted: listed in the home's ``keys/`` or given by the auditor; else 1.
   Every checkpoint beside the log is signed by such a key; if no key is known, exit code 6.
2. The log begins with record 0, or where a signed tombstone says that it was pruned.
3. Every record follows its rules (:mod:`chatsvc.audit.format.rules`); with a sealing key, its MAC too. Else 1.
4. At every checkpoint's size the tree has that checkpoint's root. Else 1.
5. An incomplete last line: 1 if a checkpoint covers it, else 4 (a crash can cause that).
6. Fewer records than a checkpoint or witness states: 5. Other records than a witness saw: 1.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from chatsvc.audit.format import layout
from chatsvc.audit.format.notes import KeyUnknown, NoteInvalid, VerifierKey
from chatsvc.audit.format.ratchet import SealKey
from chatsvc.audit.format.record import FIRST_PREV, Record, RecordInvalid
from chatsvc.audit.format.replay import Replay, check_header_note, known_keys, read_notes
from chatsvc.audit.format.rules import RuleChecker, Tampered, position_at
from chatsvc.audit.format.segment import first_line
from chatsvc.audit.format.tombstone import Tombstone, read_tombstone
from chatsvc.audit.format.tree import Frontier
from chatsvc.audit.verify.verdict import CLEAN, FEWER_RECORDS, TAMPERED, TORN_TAIL, UNKNOWN_KEY, Verdict
from chatsvc.audit.witness.seen import Seen

_SETTLE_TRIES = 5
_SETTLE_S = 0.05
COMPARE = "compare with what its owner tells you, then give a file of public keys with --key"


@dataclass(frozen=True, slots=True)
class Trust:
    """What the verifier trusts. A key beside the log proves nothing: a forger would put his own there.

    Attributes:
        keys: public keys that the auditor trusts, each for the log of its name. If there are any, no other is trusted.
        home: public keys of the home's ``keys/`` (:func:`chatsvc.audit.keys.trusted_keys`), for every log of that home.
        seal_keys: first sealing keys, to check MACs with.
        witness: checkpoints that were kept elsewhere.
    """

    keys: tuple[VerifierKey, ...] = ()
    home: frozenset[bytes] = frozenset()
    seal_keys: tuple[SealKey, ...] = ()
    witness: Seen | None = None

    def trusts(self, key: VerifierKey) -> bool:
        """Whether a key that is named beside the log or in an export is trusted."""
        return key in self.keys if self.keys else key.public in self.home

    def keys_of(self, directory: Path) -> list[VerifierKey]:
        """The keys to verify a log with."""
        return list(self.keys) or [key for key in known_keys(directory) if self.trusts(key)]

    def untrusted(self, directory: Path) -> list[VerifierKey]:
        """The keys beside a log that are not trusted."""
        return [key for key in known_keys(directory) if not self.trusts(key)]

    def seal_key_of(self, log_id: str) -> SealKey | None:
        """The first sealing key of this log, if there is one."""
        return next((key for key in self.seal_keys if key.log_id == log_id), None)


def describe_keys(keys: Sequence[VerifierKey]) -> tuple[str, ...]:
    """Each key's name and fingerprint, for people to compare."""
    return tuple(f"{key.name} {key.fingerprint}" for key in keys)


def verify_tree(directory: Path, trust: Trust) -> list[Verdict]:
    """Verify every log in a directory and directly below it; report logs that only a witness knows."""
    verdicts = [verify_log(each, trust) for each in layout.logs(directory)]
    if trust.witness is not None:
        found = {each.log_id for each in verdicts}
        keys = [key for each in layout.logs(directory) for key in trust.keys_of(each)]
        for origin, size in trust.witness.lost(found, keys):
            message = f"a witness saw {size} records of {origin}, which is missing here"
            verdicts.append(Verdict(FEWER_RECORDS, message, str(directory), origin.rpartition("/")[2], seq=0))
    return verdicts


def verify_log(directory: Path, trust: Trust) -> Verdict:
    """One log, all its segments."""
    return _verify(directory, layout.segments(directory), directory, trust, alone=False)


def verify_segment(segment: Path, beside: Path, trust: Trust) -> Verdict:
    """One segment by itself; keys and checkpoints are looked for beside it, then in ``beside``."""
    home = segment.parent if (segment.parent / layout.VKEY).exists() else beside
    return _verify(segment, [segment], home, trust, alone=True)


def _verify(what: Path, segments: Sequence[Path], home: Path, trust: Trust, *, alone: bool) -> Verdict:
    reading = _Reading(what, home, trust, alone=alone)
    try:
        return reading.verdict(segments)
    except KeyUnknown as error:
        return reading.failed(UNKNOWN_KEY, f"{error.message}")
    except Tampered as error:
        return reading.failed(TAMPERED, error.message, error.seq)
    except (NoteInvalid, RecordInvalid) as error:
        return reading.failed(TAMPERED, f"record {reading.next_seq}: {error.message}", reading.next_seq)


class _Reading:
    """One verification in progress."""

    def __init__(self, what: Path, home: Path, trust: Trust, *, alone: bool) -> None:
        self._what = what
        self._home = home
        self._trust = trust
        self._alone = alone
        self._replay: Replay | None = None
        self._first_seq = 0
        self._last: Record = {}
        self._keys: tuple[str, ...] = ()
        self._untrusted: tuple[str, ...] = ()

    @property
    def next_seq(self) -> int:
        """The number of the next record to read."""
        return self._replay.walk.position.seq if self._replay else 0

    def verdict(self, segments: Sequence[Path]) -> Verdict:
        """Steps 1 to 6."""
        for path in layout.files_of(self._home, segments):
            if path.exists() and not path.is_file():  # reading a pipe would block until somebody writes to it
                raise Tampered(0, f"{path.name} is not a regular file")
        keys, untrusted = self._trust.keys_of(self._home), self._trust.untrusted(self._home)
        self._keys, self._untrusted = describe_keys(keys), describe_keys(untrusted)
        if untrusted:  # (1)
            named = ", ".join(self._untrusted)
            return self.failed(TAMPERED, f"audit.vkey names untrusted keys: {named}; {COMPARE}")
        if not keys:
            raise KeyUnknown(f"There is no public key to verify with (audit.vkey); {COMPARE}")
        stone = None if self._alone else read_tombstone(self._home, keys)
        left = [each for each in segments if stone is None or (layout.first_seq(each) or 0) >= stone.size]
        if not left:
            return self._missing(keys)
        replay = self._begin(left[0], stone, keys)  # (2)
        for segment in left:
            self._read(replay, segment, keys)  # (1) (3) (4)
        return self._conclude(replay)  # (5) (6)

    def _missing(self, keys: Sequence[VerifierKey]) -> Verdict:
        log_id = keys[0].name.rpartition("/")[2]
        message = "record 0: the segments are missing, but the log's key is here"
        return Verdict(FEWER_RECORDS, message, str(self._what), log_id, seq=0, vouched=self._keys)

    def _begin(self, segment: Path, stone: Tombstone | None, keys: Sequence[VerifierKey]) -> Replay:
        position = position_at(first_line(segment))
        self._first_seq = position.seq
        replay = self._replay = Replay(RuleChecker(position, self._trust.seal_key_of(position.log_id)))
        if position.seq == 0 and position.prev != FIRST_PREV:
            raise Tampered(0, "the first record names a record before it")
        if position.seq and not self._alone and (stone is None or not _is_where(stone, position.frontier)):
            raise Tampered(position.seq - 1, f"records 0 to {position.seq - 1} are missing without a tombstone")
        if self._trust.witness is not None:
            seen = self._trust.witness.of(position.log_id, keys)
            replay.expect(each for each in seen if each.size >= position.seq)  # pruned records cannot be compared
        return replay

    def _read(self, replay: Replay, segment: Path, keys: Sequence[VerifierKey]) -> None:
        notes_beside = layout.checkpoints_of(segment).exists() or not self._alone
        notes = read_notes(segment if notes_beside else self._home / segment.name, keys)
        replay.expect(notes.checkpoints)
        self._read_lines(replay, segment, keys, 0)
        for _ in range(_SETTLE_TRIES):
            if not replay.torn:
                return
            # The service may be writing this line: wait a moment, and report it as torn only if the rest does not
            # arrive.
            time.sleep(_SETTLE_S)
            self._read_lines(replay, segment, keys, replay.good_bytes)

    def _read_lines(self, replay: Replay, segment: Path, keys: Sequence[VerifierKey], start: int) -> None:
        for record in replay.segment(segment, start):
            self._last = record
            if record["stage"] == "segment":
                check_header_note(record, keys)

    def _conclude(self, replay: Replay) -> Verdict:
        seq, due = self.next_seq, replay.due
        if replay.torn and due:  # (5)
            return self.failed(TAMPERED, f"record {seq}: the line is incomplete, and a checkpoint covers it", seq)
        if due:  # (6)
            says = f"a checkpoint or witness states {due[0].size}"
            return self.failed(FEWER_RECORDS, f"record {seq} is missing: there are {seq} records, {says}", seq)
        if replay.torn:  # (5)
            return self.failed(TORN_TAIL, f"record {seq}: the line is incomplete, after the last checkpoint", seq)
        if not replay.covered:  # (4)
            return self.failed(TAMPERED, f"record {self._first_seq}: no checkpoint covers the log", self._first_seq)
        rest = seq - replay.covered
        signed = (
            f"; the last {rest} are protected by the hash chain only, until the next checkpoint"
            if rest
            else ", all signed"
        )
        message = f"clean: records {self._first_seq} to {seq - 1}{signed}"
        return replace(self.failed(CLEAN, message), seq=None)

    def failed(self, exit_code: int, message: str, seq: int | None = None) -> Verdict:
        """A failing verdict, with what was read so far."""
        replay = self._replay
        if replay is None:
            verdict = Verdict(exit_code, message, str(self._what), seq=seq)
            return replace(verdict, vouched=self._keys, unvouched=self._untrusted)
        position = replay.walk.position
        return Verdict(
            exit_code=exit_code,
            message=message,
            what=str(self._what),
            log_id=position.log_id,
            seq=seq,
            first_seq=self._first_seq,
            num_records=position.seq - self._first_seq,
            num_covered=replay.covered,
            num_open=len(position.open),
            last_ts=self._last.get("ts"),
            witnessed=self._witnessed(replay),
            vouched=self._keys,
            unvouched=self._untrusted,
        )

    def _witnessed(self, replay: Replay) -> int | None:
        witness = self._trust.witness
        if witness is None:
            return None
        return max((size for size in witness.sizes(replay.walk.position.log_id) if size <= replay.covered), default=0)


def _is_where(stone: Tombstone, frontier: Frontier) -> bool:
    return stone.size == frontier.size and stone.root == frontier.root()
