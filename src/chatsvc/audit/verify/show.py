"""Reads records back for people: filters, one line a record, several logs merged by time. Verifies nothing."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from chatsvc.audit.format import layout
from chatsvc.audit.format.record import MAX_LINE_BYTES, Record


@dataclass(frozen=True, slots=True)
class Filter:
    """What to show; None means all. Times are compared as written, so a prefix such as ``2026-11-22T12`` works.

    ``accounts``: ids of accounts that ``actor`` stands for besides what it says.
    """

    action: str | None = None
    actor: str | None = None
    outcome: str | None = None
    address: str | None = None
    request_id: str | None = None
    since: str | None = None
    until: str | None = None
    accounts: frozenset[str] = frozenset()

    def takes(self, record: Record) -> bool:
        """Whether a record is to be shown. ``action`` and ``actor`` may end in ``*``."""
        wanted = (
            ("outcome", self.outcome),
            ("address", self.address),
            ("request_id", self.request_id),
        )
        if any(value is not None and record.get(name) != value for name, value in wanted):
            return False
        is_actor = record.get("actor") in self.accounts or fits(self.actor, record.get("actor"))
        return is_actor and fits(self.action, record.get("action")) and self._takes_time(str(record.get("ts")))

    def _takes_time(self, ts: str) -> bool:
        return (self.since is None or ts >= self.since) and (self.until is None or ts < self.until)


def fits(pattern: str | None, value: object) -> bool:
    """Whether a value matches a filter: None matches all, ``*`` at the end matches any ending."""
    if pattern is None or value == pattern:
        return True
    return pattern.endswith("*") and isinstance(value, str) and value.startswith(pattern[:-1])


class Tail:
    """The records of one log, from its first segment on; each :meth:`read` returns what is new."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._segment: Path | None = None
        self._offset = 0

    def read(self) -> Iterator[Record]:
        """What is new. A line that is no record is skipped: showing is not verifying."""
        for segment in layout.segments(self._directory):
            if self._segment is not None and segment < self._segment:
                continue
            start = self._offset if segment == self._segment else 0
            self._segment = segment
            yield from self._lines(segment, start)

    def _lines(self, segment: Path, start: int) -> Iterator[Record]:
        self._offset = start
        with segment.open("rb") as file:
            file.seek(start)
            while (line := file.readline(MAX_LINE_BYTES)).endswith(b"\n"):
                self._offset += len(line)
                record = _read(line)
                if record is not None:
                    yield record

    def last(self, chosen: Filter, count: int) -> list[Record]:
        """The last ``count`` records that match, reading only as many segments as needed.

        :meth:`read` then continues after them.
        """
        found: list[Record] = []
        segments = layout.segments(self._directory)
        for segment in reversed(segments):
            taken = (each for each in self._lines(segment, 0) if chosen.takes(each))
            found = [*deque(taken, maxlen=count - len(found)), *found]
            if segment == segments[-1]:
                end = self._offset
            if len(found) >= count:
                break
        if segments:
            self._segment, self._offset = segments[-1], end
        return found


def _read(line: bytes) -> Record | None:
    try:
        record = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def merged(records: Iterable[Iterable[Record]]) -> Iterator[Record]:
    """Records of several logs by time."""
    yield from heapq.merge(*records, key=lambda record: str(record.get("ts")))


_ACTOR_WIDTH = 20
HEADER = (
    f"{'time (UTC)':<23} {'record':>8}   {'action':<20} {'outcome':<8} {'actor':<{_ACTOR_WIDTH}} "
    f"{'address':<15} | details"
)


def describe_line(record: Record, names: Mapping[str, str]) -> str:
    """A record in one line for a terminal, below :data:`HEADER`; ``names`` are those of accounts by their ids.

    The sign in front of the action: ``>`` it begins, ``<`` it ends, ``#`` a new segment.
    """
    actor = str(record.get("actor") or "-")
    stage = {"begin": ">", "end": "<", "segment": "#"}.get(str(record.get("stage")), "-")
    outcome = str(record.get("outcome") or "")
    parts = [
        str(record.get("ts"))[:23].replace("T", " "),
        f"{record.get('seq')!s:>8}",
        stage,
        f"{record.get('action')!s:<20}",
        f"{outcome:<8}",
        f"{_shortened(names.get(actor, actor)):<{_ACTOR_WIDTH}}",
        f"{record.get('address') or '-'!s:<15}",
    ]
    # Control characters are escaped: a forged record or a directory's name could contain terminal commands.
    return "".join(char if char.isprintable() else "?" for char in " ".join(parts) + _rest(record, names))


def _shortened(text: str) -> str:
    return text if len(text) <= _ACTOR_WIDTH else text[: _ACTOR_WIDTH - 1] + "…"  # --json shows all of it


def _rest(record: Record, names: Mapping[str, str]) -> str:
    words = []
    details = record.get("details")
    if isinstance(details, dict) and "account" in details:  # the account that logged in, unknown when the act began
        words.append(f"account {_shortened(names.get(str(details['account']), str(details['account'])))}")
    if record.get("status") is not None:
        words.append(str(record["status"]))
    if record.get("duration_ms") is not None:
        words.append(f"{record['duration_ms']} ms")
    if record.get("num_completion_tokens") is not None:
        words.append(f"{record.get('num_prompt_tokens')}+{record['num_completion_tokens']} tokens")
    if record.get("suppressed") is not None:
        words.append(f"and {record['suppressed']} more")
    words += [str(record[name]) for name in ("reason", "request_id") if record.get(name)]
    return "".join(f" | {word}" for word in words)
