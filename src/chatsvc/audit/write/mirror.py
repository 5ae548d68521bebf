"""One log on several devices: the same bytes in several directories, preferably on different file systems.

A write that reaches one of them is durable. A full device is skipped and catches up once it has space; a failed one is
skipped until a restart. At a restart, a device that holds less is completed from the other. A device that holds another
log is never written: it is evidence. :meth:`Mirror.alarms` reports every device with a problem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from chatsvc.audit.format import layout
from chatsvc.audit.write.device import Device
from chatsvc.disk.append import AppendFile, Calls, DiskFailed, DiskFull, full_or_failed, used_share
from chatsvc.disk.durable import replace_file

_CHUNK = 1024 * 1024
State = Literal["working", "behind", "out"]


class Mirror:
    """The writer's view of all devices; the first that works is the leader."""

    def __init__(self, devices: Sequence[Device], calls: Calls, missing: Mapping[Path, str] | None = None) -> None:
        self._calls = calls
        self._states: dict[Device, State] = dict.fromkeys(devices, "working")
        self._why: dict[Path, str] = dict(missing or {})

    @property
    def segment_bytes(self) -> int:
        """Length of the current segment."""
        return self._leader().segment_bytes

    @property
    def directories(self) -> list[Path]:
        """The directories of all devices that could be opened."""
        return [each.directory for each in self._states]

    def alarms(self, max_used_share: float) -> list[str]:
        """A sentence for every device that does not hold the complete log, or whose file system is too full."""
        shares = [(directory, used_share(directory)) for directory in self.directories]
        full = [f"the file system of {each} is {share:.0%} full" for each, share in shares if share >= max_used_share]
        return [*(f"{directory} does not hold the complete log: {why}" for directory, why in self._why.items()), *full]

    def choose_leader(self) -> Device:
        """The device that holds the most records; a new process continues from it."""
        leader = max(self._states, key=lambda each: _extent(each.directory))
        self._states = {leader: "working", **self._states}
        return leader

    def resume(self, segment: Path, segment_bytes: int, note_bytes: int) -> None:
        """The leader continues its segment; the others copy what they lack."""
        leader = self._leader()
        leader.resume(segment, segment_bytes, note_bytes)
        for device in list(self._states):
            if device is not leader:
                self._follow(device, leader)

    def start_segment(self, first_seq: int, header: bytes) -> None:
        """Begin a new segment on every device."""
        self._everywhere(lambda device: device.start_segment(first_seq, header))

    def append(self, data: bytes) -> None:
        """Make lines durable on every working device, at least one.

        Raises:
            DiskFull, DiskFailed: on none.
        """
        self._everywhere(lambda device: device.append(data))

    def append_note(self, note: str) -> None:
        """Make a signed note durable."""
        self._everywhere(lambda device: device.append_note(note))

    def put(self, name: str, data: bytes) -> None:
        """Write a small public file beside the log, on every working device."""
        for device in self._in_state("working"):
            replace_file(device.directory / name, data, 0o644)

    def catch_up(self) -> None:
        """Let devices that had no space try again. Reads the whole current segment, so call it rarely."""
        for device in list(self._in_state("behind")):
            self._follow(device, self._leader())

    def close(self) -> None:
        """Close all devices."""
        for device in self._states:
            device.close()

    def _leader(self) -> Device:
        return next(self._in_state("working"))

    def _in_state(self, state: State) -> Iterator[Device]:
        return (device for device, its in list(self._states.items()) if its == state)

    def _everywhere(self, act: Callable[[Device], None]) -> None:
        failures: dict[Device, DiskFull | DiskFailed] = {}
        num_done = 0
        for device in self._in_state("working"):
            try:
                act(device)
                num_done += 1
            except (DiskFull, DiskFailed) as failure:
                failures[device] = failure
        if num_done == 0:
            self._nowhere(failures)
        for device, error in failures.items():
            self._set(device, "behind" if isinstance(error, DiskFull) else "out", error.message)

    def _nowhere(self, failures: dict[Device, DiskFull | DiskFailed]) -> None:
        """No device accepted the write. Full devices stay for the caller's retry; failed ones are skipped."""
        full = {device: error for device, error in failures.items() if isinstance(error, DiskFull)}
        for device in failures.keys() - full.keys() if full else ():
            self._set(device, "out", failures[device].message)
        raise next(iter((full or failures).values()))

    def _set(self, device: Device, state: State, why: str | None) -> None:
        self._states[device] = state
        if why is None:
            self._why.pop(device.directory, None)
        else:
            self._why[device.directory] = why

    def _follow(self, device: Device, leader: Device) -> None:
        try:
            if not self._copy(device, leader):
                self._set(device, "out", "it holds another log; move it away")
                return
        except DiskFull as error:
            self._set(device, "behind", error.message)
        except (DiskFailed, OSError) as error:
            self._set(device, "out", str(error))
        else:
            self._set(device, "working", None)

    def _copy(self, device: Device, leader: Device) -> bool:
        """Complete a device from the leader. False if its bytes are not a prefix of the leader's."""
        ours, theirs = layout.segments(leader.directory), layout.segments(device.directory)
        oldest = layout.first_seq(ours[0]) or 0
        theirs = [
            path for path in theirs if (layout.first_seq(path) or 0) >= oldest
        ]  # only the leader may have been pruned
        names = [path.name for path in ours]
        if any(path.name not in names for path in theirs):
            return False
        first = names.index(theirs[-1].name) if theirs else 0
        for segment in ours[first:]:
            if not self._extend(device.directory / segment.name, segment):
                return False
            notes = layout.checkpoints_of(segment)
            self._extend(device.directory / notes.name, notes)
        for name in (layout.VKEY, layout.TOMBSTONE):
            if (leader.directory / name).exists():
                with full_or_failed(device.directory / name):
                    replace_file(device.directory / name, (leader.directory / name).read_bytes(), 0o644)
        last = device.directory / names[-1]
        device.resume(last, last.stat().st_size, layout.checkpoints_of(last).stat().st_size)
        return True

    def _extend(self, path: Path, source: Path) -> bool:
        file = AppendFile(path, self._calls)
        try:
            with source.open("rb") as reader, path.open("rb") as own:
                while piece := own.read(_CHUNK):
                    if reader.read(len(piece)) != piece:
                        return False
                while piece := reader.read(_CHUNK):
                    file.append(piece)
            return True
        finally:
            file.close()


def _extent(directory: Path) -> tuple[int, int]:
    """The end of a log: its last segment's number and length."""
    segments = layout.segments(directory)
    if not segments:
        return (-1, 0)
    return (layout.first_seq(segments[-1]) or 0, segments[-1].stat().st_size)
