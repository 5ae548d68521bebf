"""One directory that holds a log: its current segment and that segment's checkpoints.

Knows nothing about what it writes.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from chatsvc.audit.format import layout
from chatsvc.disk.append import SYSTEM, AppendFile, Calls, DiskFailed, DiskFull, full_or_failed
from chatsvc.disk.durable import sync_directory
from chatsvc.disk.lock import Lock


class Device:
    """The only writer of a log's directory, as long as it holds the lock."""

    def __init__(self, directory: Path, lock_timeout_s: float, calls: Calls = SYSTEM) -> None:
        self.directory = directory
        self._calls = calls
        self._segment: AppendFile | None = None
        self._notes: AppendFile | None = None
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = Lock(directory / layout.LOCK, lock_timeout_s)

    @property
    def segment_bytes(self) -> int:
        """Length of the current segment."""
        return self._segment.size if self._segment else 0

    def resume(self, segment: Path, segment_bytes: int, note_bytes: int) -> None:
        """Continue an existing segment; bytes beyond the given lengths are an incomplete write and are cut off."""
        self._close_files()
        self._segment = self._at(segment, segment_bytes)
        self._notes = self._at(layout.checkpoints_of(segment), note_bytes)

    def _at(self, path: Path, size: int) -> AppendFile:
        file = AppendFile(path, self._calls)
        if file.size != size:
            file.truncate(size)
        return file

    def start_segment(self, first_seq: int, header: bytes) -> None:
        """Begin a new segment with its header line; on failure the current one stays."""
        path = self.directory / layout.segment_name(first_seq)
        opened: list[AppendFile] = []
        try:
            for each, data in ((path, header), (layout.checkpoints_of(path), b"")):
                opened.append(AppendFile(each, self._calls))
                opened[-1].append(data)
            with full_or_failed(self.directory):
                sync_directory(self.directory, self._calls.fsync)
        except (DiskFull, DiskFailed):
            for file in opened:
                file.close()
                with contextlib.suppress(OSError):
                    file.path.unlink()
            raise
        self._close_files()
        self._segment, self._notes = opened

    def append(self, data: bytes) -> None:
        """Make lines durable."""
        assert self._segment is not None, "a segment is begun or resumed first"
        self._segment.append(data)

    def append_note(self, note: str) -> None:
        """Make a signed note durable."""
        assert self._notes is not None, "a segment is begun or resumed first"
        self._notes.append(note.encode() + b"\n")

    def _close_files(self) -> None:
        for file in (self._segment, self._notes):
            if file is not None:
                file.close()
        self._segment = self._notes = None

    def close(self) -> None:
        """Close the files and release the lock."""
        self._close_files()
        self._lock.release()
