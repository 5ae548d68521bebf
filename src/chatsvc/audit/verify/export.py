"""An export: one signed file of records, checkpoints, proofs and public keys that proves a span of time by itself.

Lines of canonical JSON, distinguished by their one key (a record has many)::

    {"export": {"v", "from", "to", "made_at", "vkeys"}}
    {"log": {"log_id", "first_seq", "prev", "epoch", "segment"}}    for each log that has some, then
      records unchanged, and after the record where a checkpoint was made,
      {"checkpoint": "<note>"}
      {"end": {"size", "checkpoint", "right"}}                              a range proof, below
    {"signature": "<note>"}                                                 over the SHA-256 of all lines before

``segment.tree`` is the frontier in front of the first record, ``right`` the roots of the perfect subtrees from behind
the last one up to ``size``; frontier, records and ``right`` lead to the root of ``checkpoint``, which is what witnesses
have seen. Knows nothing about HTTP or files to write to: it yields pieces.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from chatsvc.audit import keys
from chatsvc.audit.format import layout
from chatsvc.audit.format.notes import Checkpoint, Signer, VerifierKey, format_checkpoint, format_vkey
from chatsvc.audit.format.record import encode, format_time
from chatsvc.audit.format.replay import Replay, known_keys, read_notes
from chatsvc.audit.format.rules import Position, RuleChecker, header_of, position_at
from chatsvc.audit.format.segment import HeaderTimes, first_line, header_times, is_header, whole_lines
from chatsvc.audit.format.tree import cover, leaf_hash, root_of
from chatsvc.disk.durable import sync_file
from chatsvc.errors import OperatorError

VERSION = 1


@dataclass(frozen=True, slots=True)
class Span:
    """Unix microseconds: from the first, up to and without the second; ``made_at`` is now."""

    start_us: int
    end_us: int
    made_at_us: int


def export(directory: Path, keys_directory: Path, span: Span) -> Iterator[bytes]:
    """The export of every log in a directory, in pieces.

    Raises:
        OperatorError: there is no log or no signing key, or a key beside the log is not in ``keys/``; nothing has been
            yielded then.
        Tampered, RecordInvalid: the log is damaged; what was yielded is no export without its signature.
    """
    logs = [(each, known) for each in layout.logs(directory) if (known := known_keys(each))]
    if not logs:
        raise OperatorError(f"There is no audit log in {directory}.")
    signing = keys.signing_key(keys_directory, create=False)
    trusted = keys.trusted_keys(keys_directory)
    untrusted = [key.fingerprint for _, known in logs for key in known if key.public not in trusted]
    if untrusted:
        raise OperatorError(
            f"The log names keys that are not in keys/: {', '.join(untrusted)}; see 'chatsvc audit verify'."
        )
    return _lines([_LogPart(each, known, Signer(known[-1].name, signing), span) for each, known in logs], span)


def parse_moment(text: str) -> int:
    """Unix microseconds of a day or a time in ISO 8601; UTC if it names no time zone.

    Raises:
        ValueError: it is neither.
    """
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1_000_000)


def signature_text(name: str, digest: bytes) -> str:
    """The text that is signed at the end of an export."""
    return f"{name}\nexport v1\n{digest.hex()}\n"


def _lines(parts: Sequence[_LogPart], span: Span) -> Iterator[bytes]:
    total = hashlib.sha256()
    start, end, made_at = (format_time(each) for each in (span.start_us, span.end_us, span.made_at_us))
    vkeys = [format_vkey(key) for stretch in parts for key in stretch.keys]
    head = encode({"export": {"v": VERSION, "from": start, "to": end, "made_at": made_at, "vkeys": vkeys}})
    for line in itertools.chain([head], *(stretch.lines() for stretch in parts)):
        total.update(line + b"\n")
        yield line + b"\n"
    signer = parts[0].signer
    yield encode({"signature": signer.sign(signature_text(signer.verifier_key.name, total.digest()))}) + b"\n"


class _LogPart:
    """One log's part of an export."""

    def __init__(self, directory: Path, known: Sequence[VerifierKey], signer: Signer, span: Span) -> None:
        self._extent = _extent(layout.segments(directory), span)
        self._segments = _from(layout.segments(directory), self._extent[0] if self._extent else 0)
        self.signer = signer
        self.keys = [*known, *({signer.verifier_key} - set(known))]
        self._notes: dict[int, str] = {}
        self._replay = Replay(RuleChecker(position_at(first_line(self._segments[0]))))

    def lines(self) -> Iterator[bytes]:
        """The log's lines; none if no record is in the span."""
        if self._extent is None:
            return
        first_seq, last_seq = self._extent
        size, behind = 0, []
        for line, seq, before in self._records(first_seq):
            if before is not None:
                yield self._head(before)
            if seq > last_seq:
                behind.append(leaf_hash(line))
                if seq + 1 in self._notes:
                    break
                continue
            yield line
            size = seq + 1
            if size in self._notes:
                yield encode({"checkpoint": self._notes[size]})
        yield self._end(size, behind)

    def _records(self, first_seq: int) -> Iterator[tuple[bytes, int, Position | None]]:
        """Lines from a record on, each checked; with the first, the position in front of it."""
        walk, started = self._replay.walk, False
        for segment in self._segments:
            notes = read_notes(segment, self.keys)
            self._notes |= {each.size: note for each, note in zip(notes.checkpoints, notes.notes, strict=True)}
            self._replay.expect(notes.checkpoints)
            for line in whole_lines(segment):
                before = None if started else walk.position.copy()
                self._replay.line(line, first=is_header(line))
                if started or walk.position.seq > first_seq:
                    yield line, walk.position.seq - 1, before
                    started = True

    def _head(self, before: Position) -> bytes:
        head = {
            "log_id": before.log_id,
            "first_seq": before.seq,
            "prev": before.prev.hex(),
            "epoch": before.epoch,
            "segment": header_of(before, self.signer.verifier_key.name, None),
        }
        return encode({"log": head})

    def _end(self, size: int, behind: Sequence[bytes]) -> bytes:
        """The proof that leads to a checkpoint; if there is none yet, to a new one over all records."""
        frontier = self._replay.walk.position.frontier
        note = self._notes.get(frontier.size)
        if note is None:
            sync_file(self._segments[-1])  # sign only what a power failure cannot undo
            note = self.signer.sign(
                format_checkpoint(Checkpoint(self.signer.verifier_key.name, frontier.size, frontier.root()))
            )
        right, place = [], 0
        for level in cover(size, frontier.size):
            right.append(root_of(behind[place : place + (1 << level)]).hex())
            place += 1 << level
        return encode({"end": {"size": frontier.size, "checkpoint": note, "right": right}})


class _Dated(msgspec.Struct):
    """The values that decide whether a record is in a span."""

    seq: int
    ts: str


_decoder = msgspec.json.Decoder(_Dated)


def _dated(line: bytes) -> _Dated:
    try:
        return _decoder.decode(line)
    except msgspec.DecodeError:
        return _Dated(-1, "")  # in no span; the rules report it where the line is checked


def _extent(segments: Sequence[Path], span: Span) -> tuple[int, int] | None:
    """The first and the last record of the span; None if there is none.

    The wall clock may have been set back, so that a record of an earlier time follows; what lies between is in it too.
    """
    start, end = format_time(span.start_us), format_time(span.end_us)
    found: list[int] = []
    for segment, following in itertools.zip_longest(segments, segments[1:]):
        if following is not None and not _may_hold(header_times(segment), header_times(following), span):
            continue
        found += [each.seq for each in map(_dated, whole_lines(segment)) if start <= each.ts < end]
        found = [found[0], found[-1]] if found else []
    return (found[0], found[-1]) if found else None


def _may_hold(header: HeaderTimes, following: HeaderTimes, span: Span) -> bool:
    """Between two headers without a clock step, time only increases."""
    is_within = header.wall_us < span.end_us and following.wall_us >= span.start_us
    return is_within or header.num_steps != following.num_steps


def _from(segments: list[Path], seq: int) -> list[Path]:
    """The segments from the one that holds a record."""
    begun = [each for each in segments if (layout.first_seq(each) or 0) <= seq]
    return segments[len(begun) - 1 :] if begun else segments
