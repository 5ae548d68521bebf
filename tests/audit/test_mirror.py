"""The same log on two devices: one that works is enough."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from chatsvc.audit.facts import Result
from chatsvc.audit.format import layout
from chatsvc.audit.log import AuditLog
from chatsvc.audit.verify.log import verify_log
from chatsvc.audit.verify.prune import prune
from chatsvc.audit.verify.verdict import CLEAN
from chatsvc.disk.append import Calls, used_share
from chatsvc.errors import AuditUnavailable
from tests.audit.logs import DAY_US, home_trust, write_segments, write_some
from tests.audit.test_faults import fails_to_write
from tests.audit.test_log import CHAT, wait_until


class Disks:
    """System calls that fail on files below the named directories."""

    def __init__(self) -> None:
        self.full: set[str] = set()
        self.broken: set[str] = set()

    def calls(self) -> Calls:
        return Calls(write=self._write, fdatasync=self._sync, fsync=self._sync)

    def _write(self, descriptor, data):
        if any(each in self._path(descriptor) for each in self.full):
            raise OSError(errno.ENOSPC, "No space left on device")
        return os.write(descriptor, data)

    def _sync(self, descriptor):
        if any(each in self._path(descriptor) for each in self.broken):
            raise OSError(errno.EIO, "Input/output error")
        os.fsync(descriptor)

    def _path(self, descriptor) -> str:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())


@pytest.fixture
def disks() -> Disks:
    return Disks()


@pytest.fixture
def two(options, tmp_path):
    return replace(options, second_directory=tmp_path / "second")


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != layout.LOCK}


def same(two) -> bool:
    return contents(two.directory) == contents(two.second_directory)


def is_clean(directory) -> bool:
    return verify_log(directory, home_trust(directory)).exit_code == CLEAN


def test_both_hold_the_same_and_each_verifies(two, time):
    write_segments(two, time, 3)
    assert same(two)
    assert is_clean(two.second_directory)


@pytest.mark.parametrize("which", ["/audit/", "/second/"])
def test_one_that_is_full_falls_behind_alarms_and_catches_up(two, disks, which):
    log = AuditLog.open(replace(two, segment_bytes=4000), calls=disks.calls())
    disks.full.add(which)
    for _ in range(10):
        log.event(CHAT, Result("allowed"))
    assert log.problem() is None
    assert any("No space" in each for each in log.alarms())
    disks.full.clear()
    wait_until(lambda: not log.alarms())
    log.close()
    assert same(two)
    assert is_clean(two.directory)


@pytest.mark.parametrize("which", ["/audit/", "/second/"])
def test_one_that_breaks_is_left_out_and_catches_up_at_the_next_start(two, disks, which):
    log = AuditLog.open(two, calls=disks.calls())
    disks.broken.add(which)
    for _ in range(5):
        log.event(CHAT, Result("allowed"))
    disks.broken.clear()
    log.event(CHAT, Result("allowed"))
    assert log.problem() is None
    assert any("fdatasync" in each for each in log.alarms())
    log.close()
    assert not same(two)
    again = AuditLog.open(two)
    assert not again.alarms()
    again.close()
    assert same(two)
    assert is_clean(two.second_directory)


def test_both_full_refuse_and_heal_together(two, disks):
    log = AuditLog.open(two, calls=disks.calls())
    disks.full |= {"/audit/", "/second/"}
    assert fails_to_write(log)
    disks.full.clear()
    wait_until(lambda: log.problem() is None)
    assert not log.alarms()
    log.close()
    assert same(two)


def test_one_full_and_one_broken_refuse_until_there_is_space(two, disks):
    log = AuditLog.open(two, calls=disks.calls())
    disks.full.add("/audit/")
    disks.broken.add("/second/")
    assert fails_to_write(log)
    disks.full.clear()
    wait_until(lambda: log.problem() is None)
    log.event(CHAT, Result("allowed"))
    assert len(log.alarms()) == 1
    log.close()
    assert is_clean(two.directory)


def test_both_broken_stop_the_log(two, disks):
    log = AuditLog.open(two, calls=disks.calls())
    disks.broken |= {"/audit/", "/second/"}
    assert fails_to_write(log)
    disks.broken.clear()
    assert fails_to_write(log)
    log.close()


def test_a_second_device_that_is_new_takes_over_the_whole_log(options, two, time):
    write_segments(options, time, 3)
    write_some(two, time, 1)
    assert same(two)


def test_a_first_device_that_was_replaced_takes_it_back(two, time):
    write_segments(two, time, 2)
    shutil.rmtree(two.directory)
    write_some(two, time, 1)
    assert same(two)
    assert is_clean(two.directory)


def test_a_second_device_that_is_not_there_alarms_only(two, tmp_path):
    (tmp_path / "file").write_text("")
    log = AuditLog.open(replace(two, second_directory=tmp_path / "file" / "second"))
    log.event(CHAT, Result("allowed"))
    assert len(log.alarms()) == 1
    log.close()
    (tmp_path / "audit2").write_text("")
    with pytest.raises(AuditUnavailable):
        AuditLog.open(replace(two, directory=tmp_path / "file" / "a", second_directory=tmp_path / "file" / "b"))


@pytest.mark.parametrize("change", ["other bytes", "other segments"])
def test_a_second_device_that_holds_another_log_is_evidence_and_not_written(two, time, change):
    write_some(two, time, 2)
    (segment,) = layout.segments(two.second_directory)
    if change == "other bytes":
        segment.write_bytes(segment.read_bytes().replace(b"alice", b"alicf")[:-1])
    else:
        segment.rename(segment.with_name("audit-000000000000000.jsonl"))
        (two.second_directory / layout.segment_name(0)).write_bytes(b"")
        (two.second_directory / "audit-000000000000000.jsonl").write_bytes(b"x")
    before = contents(two.second_directory)
    log = AuditLog.open(two)
    assert "it holds another log" in log.alarms()[0]
    log.event(CHAT, Result("allowed"))
    log.close()
    assert {name: data for name, data in contents(two.second_directory).items() if name in before} == before


def test_a_second_device_without_space_at_the_start_is_behind(two, time, disks):
    write_some(replace(two, second_directory=None), time, 3)
    disks.full.add("/second/")
    log = AuditLog.open(two, calls=disks.calls())
    assert log.alarms()
    log.event(CHAT, Result("allowed"))
    disks.full.clear()
    wait_until(lambda: not log.alarms())
    log.close()
    assert same(two)


def test_a_file_system_that_is_nearly_full_alarms_and_says_so_once(options, caplog):
    log = AuditLog.open(replace(options, space_alarm=0.0000001, checkpoint_records=1))
    assert "full" in log.alarms()[0]
    for _ in range(5):
        log.event(CHAT, Result("allowed"))
    wait_until(lambda: caplog.text)
    log.close()
    assert caplog.text.count("% full") == 1


def test_a_file_system_is_as_full_as_df_says(tmp_path):
    percent = subprocess.run(["df", "--output=pcent", tmp_path], check=True, capture_output=True, text=True).stdout
    assert used_share(tmp_path) == pytest.approx(int(percent.split()[-1].rstrip("%")) / 100, abs=0.02)


def test_a_second_device_that_cannot_be_written_at_the_start_is_left_out(two, time):
    write_some(two, time, 1)
    (segment,) = layout.segments(two.second_directory)
    notes = layout.checkpoints_of(segment)
    notes.unlink()
    notes.mkdir()
    log = AuditLog.open(two)
    assert len(log.alarms()) == 1
    log.close()
    assert is_clean(two.directory)


def test_a_device_that_was_pruned_alone_still_leads(two, time):
    write_segments(two, time, 5, days_between=60)
    assert prune(two.directory, two.keys, 180, time.wall_us)
    time.pass_us(-60 * DAY_US)
    log = AuditLog.open(two, clock=time.clock())
    assert not log.alarms()
    log.close()
    assert is_clean(two.directory)
    assert is_clean(two.second_directory)
