"""Verifies an export (:mod:`chatsvc.audit.verify.export`) on a machine that has nothing else, streaming.

1. Lines are canonical JSON in the format's order; the last is the signature.
2. Every log's records keep the rules of the chain from the position stated in its head.
3. At every checkpoint in between, and at the end through the range proof, the tree has the root that was signed under
   this log's name; so the head's statement is verified as well.
4. The signature over the whole file is by a key of the name that its text begins with, and that key is known for every
   log in the file: a key of one log is not trusted for another, nor for how much of it was left out.

The keys that the file names are compared with those that the verifier brought. If none of them is trusted, the
file is still checked, so that the answer tells whether it is complete, but the exit code is 6: anybody can make a key.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from chatsvc.audit.format.notes import KeyUnknown, NoteInvalid, VerifierKey, open_note, parse_note, parse_vkey
from chatsvc.audit.format.record import Record, RecordInvalid, decode
from chatsvc.audit.format.replay import Replay, read_checkpoint
from chatsvc.audit.format.rules import RuleChecker, Tampered, position_of
from chatsvc.audit.format.segment import is_header, whole_lines
from chatsvc.audit.format.tree import ProofInvalid, cover
from chatsvc.audit.verify.export import VERSION, signature_text
from chatsvc.audit.verify.log import COMPARE, Trust, describe_keys
from chatsvc.audit.verify.verdict import CLEAN, TAMPERED, UNKNOWN_KEY, Verdict


def is_export(path: Path) -> bool:
    """Whether a file begins like an export."""
    with path.open("rb") as file:
        return file.read(11) == b'{"export":{'


def verify_export(path: Path, trust: Trust) -> Verdict:
    """The whole file."""
    reading = _Reading(trust)
    try:
        for line in whole_lines(path):
            reading.line(line)
        message = reading.conclude()
    except KeyUnknown as error:
        return Verdict(UNKNOWN_KEY, error.message, str(path), seq=reading.seq)
    except Tampered as error:
        return Verdict(TAMPERED, error.message, str(path), seq=error.seq)
    except (RecordInvalid, NoteInvalid, ProofInvalid, KeyError, TypeError, ValueError, AttributeError):
        seq = reading.seq
        return Verdict(TAMPERED, f"record {seq}: the export is damaged at or after this record", str(path), seq=seq)
    trusted, untrusted = describe_keys(reading.trusted_keys), describe_keys(reading.untrusted_keys)
    return Verdict(
        UNKNOWN_KEY if untrusted else CLEAN,
        message,
        str(path),
        num_records=reading.num_records,
        num_covered=reading.num_records,
        vouched=trusted,
        unvouched=untrusted,
    )


class _Reading:
    """One verification in progress."""

    def __init__(self, trust: Trust) -> None:
        self._trust = trust
        self._digest = hashlib.sha256()
        self._keys: list[VerifierKey] = []
        self.trusted_keys: list[VerifierKey] = []
        self.untrusted_keys: list[VerifierKey] = []
        self._replay: Replay | None = None
        self._head: dict[str, Any] | None = None
        self._origins: set[str] = set()  # of the logs that have been read
        self._signed = False
        self.num_records = 0

    @property
    def seq(self) -> int:
        """The next record's number, as far as is known."""
        return self._replay.walk.position.seq if self._replay else 0

    def line(self, line: bytes) -> None:
        """Take one line (1)."""
        if self._signed:
            raise NoteInvalid
        if line.startswith(b'{"signature":'):
            self._check_signature(decode(line)["signature"])
            return
        self._digest.update(line + b"\n")
        if self._head is None:
            self._head = self._read_head(decode(line))
        elif line.startswith(b'{"log":'):
            self._begin(decode(line)["log"])
        elif line.startswith(b'{"checkpoint":'):
            self._expect(decode(line)["checkpoint"])
        elif line.startswith(b'{"end":'):
            self._end(decode(line)["end"])
        else:
            self._reached().line(line, first=is_header(line))  # (2)
            self.num_records += 1

    def conclude(self) -> str:
        """After the last line."""
        if not self._signed or self._head is None:
            raise NoteInvalid
        what = f"{self.num_records} records from {self._head['from']} to {self._head['to']}"
        if not self.untrusted_keys:
            return f"clean: {what}"
        named = ", ".join(describe_keys(self.untrusted_keys))
        return f"{what} are intact, but signed by untrusted keys: {named}; {COMPARE}"

    def _read_head(self, record: Record) -> dict[str, Any]:
        head: dict[str, Any] = record["export"]
        if head["v"] != VERSION:
            raise RecordInvalid
        named = [parse_vkey(each) for each in head["vkeys"]]
        self.trusted_keys = list(self._trust.keys) or [key for key in named if self._trust.trusts(key)]
        # If the auditor gave keys, only these are used; else all named keys, to tell whether the file is complete.
        self.untrusted_keys = [] if self._trust.keys else [key for key in named if key not in self.trusted_keys]
        self._keys = [*self.trusted_keys, *self.untrusted_keys]
        return head

    def _reached(self) -> Replay:
        if self._replay is None:
            raise RecordInvalid
        return self._replay

    def _begin(self, head: dict[str, Any]) -> None:
        if self._replay is not None:
            raise RecordInvalid
        position = position_of(head, head["first_seq"])
        self._replay = Replay(RuleChecker(position, self._trust.seal_key_of(position.log_id)))

    def _expect(self, note: str) -> None:
        checkpoint = read_checkpoint(note, self._keys)
        if checkpoint.size != self.seq:
            raise NoteInvalid
        self._reached().expect([checkpoint])  # (3)

    def _end(self, end: dict[str, Any]) -> None:
        replay = self._reached()
        checkpoint = read_checkpoint(end["checkpoint"], self._keys)
        frontier = replay.walk.position.frontier.copy()
        levels, right = cover(frontier.size, end["size"]), [bytes.fromhex(each) for each in end["right"]]
        for level, root in zip(levels, right, strict=True):
            frontier.append_subtree(level, root)
        if checkpoint.origin.rpartition("/")[2] != replay.walk.position.log_id:  # (3)
            raise Tampered(self.seq - 1, f"the checkpoint at the end is of another log, {checkpoint.origin}")
        if (checkpoint.size, checkpoint.root) != (frontier.size, frontier.root()):
            raise Tampered(self.seq - 1, "the records do not match the checkpoint at the end")
        self._origins.add(checkpoint.origin)
        self._replay = None

    def _check_signature(self, note: str) -> None:
        """(4)"""
        if self._replay is not None:
            raise NoteInvalid
        name = parse_note(note).text.partition("\n")[0]  # verified by what follows
        try:
            text = open_note(note, self._fitting(name))
        except KeyUnknown:
            raise KeyUnknown("The export is signed by no key that is known for every log in it.") from None
        if text != signature_text(name, self._digest.digest()):
            raise NoteInvalid
        self._signed = True

    def _fitting(self, name: str) -> list[VerifierKey]:
        """The known keys of that name that are known for each log in the file too."""
        known = set(self._keys)
        named = [key for key in self._keys if key.name == name]
        return [key for key in named if known.issuperset(VerifierKey(each, key.public) for each in self._origins)]
