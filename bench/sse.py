"""Server-sent events out of a byte stream, by the standard's rules. Knows nothing about HTTP or what the events say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """One event; ``name`` is ``message`` unless the stream says otherwise."""

    name: str
    data: str


class EventBuffer:
    """Bytes go in as they come, whole events come out. Lines may end in LF, CR LF or CR; comments are skipped."""

    def __init__(self) -> None:
        self._rest = b""
        self._name = ""
        self._data: list[str] = []

    def feed(self, received: bytes) -> Iterator[Event]:
        """Every event that is complete with these bytes."""
        *lines, self._rest = self._split(self._rest + received)
        for raw in lines:
            if raw:
                self._field(raw.decode())
            elif self._data:
                yield Event(self._name or "message", "\n".join(self._data))
            if not raw:
                self._name, self._data = "", []

    @staticmethod
    def _split(text: bytes) -> list[bytes]:
        # A CR at the very end may be half of a CR LF: it waits for the next bytes.
        held = b"\r" if text.endswith(b"\r") else b""
        lines = text.removesuffix(held).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        lines[-1] += held
        return lines

    def _field(self, line: str) -> None:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._name = value
