"""The lines of one segment file, unchecked. :mod:`chatsvc.audit.format.replay` checks them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from chatsvc.audit.format.record import MAX_LINE_BYTES, decode, parse_time
from chatsvc.audit.format.rules import position_at


def first_line(segment: Path) -> bytes:
    """The segment record's line without its newline; if the segment is torn, as much as exists."""
    with segment.open("rb") as file:
        return file.readline(MAX_LINE_BYTES).rstrip(b"\n")


@dataclass(frozen=True, slots=True)
class HeaderTimes:
    """When a segment began, by the wall clock and by log time; ``num_steps`` clock steps came before it."""

    wall_us: int
    log_us: int
    num_steps: int


def header_times(segment: Path) -> HeaderTimes:
    """The times of a segment's first record."""
    line = first_line(segment)
    position, wall_us = position_at(line), parse_time(decode(line)["ts"])
    return HeaderTimes(wall_us, wall_us - position.clock_us, position.num_steps)


def whole_lines(path: Path) -> Iterator[bytes]:
    """Lines without their newlines; an incomplete last line is left out."""
    with path.open("rb") as file:
        while (line := file.readline(MAX_LINE_BYTES)).endswith(b"\n"):
            yield line[:-1]


def is_header(line: bytes) -> bool:
    """Whether a line looks like a segment record; the rules decide whether it is one."""
    return b'"stage":"segment"' in line
