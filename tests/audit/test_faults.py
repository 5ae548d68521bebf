"""Disks that are full or broken, at every call, and real small file systems."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
import time as real_time
from dataclasses import replace

import pytest

from chatsvc.audit import keys
from chatsvc.audit.facts import Facts, Result
from chatsvc.audit.format import layout
from chatsvc.audit.format.ratchet import parse_seal_key
from chatsvc.audit.log import SILENT, AuditLog
from chatsvc.audit.verify.log import verify_log
from chatsvc.audit.verify.verdict import CLEAN
from chatsvc.disk.append import Calls, DiskFull
from chatsvc.errors import AuditUnavailable
from tests.audit.logs import home_trust, last_segment, lines_of
from tests.audit.test_log import CHAT, found, wait_until


class FaultyDisk:
    """Real system calls, one of which fails from the ``nth`` time on for ``times`` times."""

    def __init__(self, name: str, code: int, nth: int = 0, times: int = 1, partial: int = 0) -> None:
        self.name, self.code, self.nth, self.times, self.partial = name, code, nth, times, partial
        self.count = 0
        self.active = False

    def calls(self) -> Calls:
        return Calls(
            write=lambda fd, data: self._do("write", os.write, fd, data),
            fdatasync=lambda fd: self._do("fdatasync", os.fdatasync, fd),
            fsync=lambda fd: self._do("fsync", os.fsync, fd),
            ftruncate=lambda fd, size: self._do("ftruncate", os.ftruncate, fd, size),
        )

    def _do(self, name, call, *arguments):
        if self.active and name == self.name:
            self.count += 1
            if self.nth < self.count <= self.nth + self.times:
                if self.partial and name == "write":
                    os.write(arguments[0], bytes(arguments[1])[: self.partial])
                raise OSError(self.code, os.strerror(self.code))
        return call(*arguments)


def fails_to_write(log) -> bool:
    try:
        log.begin(CHAT)
    except AuditUnavailable:
        return True
    return False


def no_torn_line(options) -> bool:
    return last_segment(options).read_bytes().endswith(b"\n")


@pytest.mark.parametrize("partial", [0, 1, 100, 5000])
def test_no_space_refuses_leaves_no_torn_line_and_heals(options, partial):
    disk = FaultyDisk("write", errno.ENOSPC, times=3, partial=partial)
    log = AuditLog.open(options, calls=disk.calls())
    log.begin(CHAT)
    disk.active = True
    assert fails_to_write(log)
    assert "no space" in (log.problem() or "")
    assert fails_to_write(log)  # at once, without trying
    assert no_torn_line(options)
    wait_until(lambda: log.problem() is None)
    log.begin(CHAT).end(Result("allowed"))
    (resumed,) = found(options, action="audit.resumed")
    assert resumed["details"]["num_refused"] == 1
    log.close()
    assert verify_log(options.directory, home_trust(options)).exit_code == CLEAN


def test_an_end_without_space_is_written_when_there_is_some(options):
    disk = FaultyDisk("write", errno.ENOSPC, times=2)
    log = AuditLog.open(options, calls=disk.calls())
    record = log.begin(CHAT)
    disk.active = True
    record.end(Result("allowed", 200))
    wait_until(lambda: log.problem() is None)
    wait_until(lambda: found(options, stage="end"))
    log.close()
    (end,) = found(options, stage="end")
    assert (end["outcome"], end["status"]) == ("allowed", 200)


@pytest.mark.parametrize(
    ("name", "code"), [("fdatasync", errno.EIO), ("fdatasync", errno.ENOSPC), ("write", errno.EIO)]
)
def test_a_failing_disk_is_not_tried_again_until_a_restart(options, name, code, caplog):
    disk = FaultyDisk(name, code)
    log = AuditLog.open(options, calls=disk.calls())
    log.begin(CHAT).end(Result("allowed"))
    record = log.begin(CHAT)
    disk.active = True
    record.end(Result("allowed"))
    disk.active = False
    assert "its disk or its writer failed" in (log.problem() or "")
    real_time.sleep(0.2)  # longer than retry_s
    assert fails_to_write(log)
    assert "lost" in caplog.text or "cannot be written" in caplog.text
    log.close()
    assert no_torn_line(options)
    again = AuditLog.open(options)
    assert again.problem() is None
    again.close()
    assert verify_log(options.directory, home_trust(options)).exit_code == CLEAN
    assert len(found(options, stage="begin")) == len(found(options, stage="end")) == 2


def test_a_torn_line_that_cannot_be_cut_off_stops_the_log_and_is_cut_at_the_next_start(options, caplog):
    disk = FaultyDisk("write", errno.ENOSPC, partial=50)
    calls = disk.calls()

    def broken(descriptor, size):
        raise OSError(errno.EIO, "broken")

    log = AuditLog.open(options, calls=replace(calls, ftruncate=broken))
    disk.active = True
    assert fails_to_write(log)
    assert log.problem()
    assert "ftruncate" in caplog.text
    log.close()
    assert not no_torn_line(options)
    AuditLog.open(options).close()
    assert verify_log(options.directory, home_trust(options)).exit_code == CLEAN
    assert found(options, action="audit.start")[-1]["details"]["torn_bytes"] == 50


def written_on_a_disk_that_fails(options, disk, prefix) -> list[str]:
    """What was acknowledged between opening and closing, both on that disk."""
    disk.active = True
    try:
        log = AuditLog.open(options, calls=disk.calls())
    except AuditUnavailable:
        return []
    acknowledged = []
    for number in range(8):
        try:
            log.event(replace(CHAT, request_id=f"{prefix}-{number}"), Result("allowed"))
            acknowledged.append(f"{prefix}-{number}")
        except AuditUnavailable:
            real_time.sleep(0.01)
    log.close()
    return acknowledged


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("name", ["write", "fdatasync", "fsync", "ftruncate"])
def test_at_whichever_call_the_disk_fails_nothing_acknowledged_is_lost(options, name, code):
    """The first call fails, then the second …, until one run needs no more of them; each run goes on in the same log.

    Opening, checkpoints, rotation and closing included. Segments here hold some ten records.
    """
    busy = replace(options, checkpoint_records=2, segment_bytes=65_536 // 20, epoch_s=1)
    AuditLog.open(busy).close()
    acknowledged: list[str] = []
    for nth in range(100):
        disk = FaultyDisk(name, code, nth=nth, times=1)
        acknowledged += written_on_a_disk_that_fails(busy, disk, str(nth))
        if disk.count <= nth:
            break
        AuditLog.open(busy).close()  # the next start cuts off what is torn
        assert no_torn_line(busy)
    else:
        pytest.fail("the disk always failed")
    assert nth >= {"write": 15, "fdatasync": 15, "fsync": 1, "ftruncate": 0}[name], (
        "every call of a run was made to fail"
    )
    assert set(acknowledged) <= {each["request_id"] for each in found(busy, stage="event")}
    assert verify_log(busy.directory, home_trust(busy)).exit_code == CLEAN


def test_a_disk_that_does_not_answer_is_refused_and_what_was_begun_is_closed(options):
    stuck, go_on = threading.Event(), threading.Event()

    def slow(descriptor):
        if stuck.is_set():
            go_on.wait(10)
        os.fdatasync(descriptor)

    log = AuditLog.open(replace(options, commit_timeout_s=0.1), calls=Calls(fdatasync=slow))
    stuck.set()
    with pytest.raises(AuditUnavailable):
        log.begin(CHAT)
    wait_until(lambda: log.problem() == SILENT)
    stuck.clear()
    go_on.set()
    wait_until(lambda: log.problem() is None)
    log.event(CHAT, Result("allowed"))
    wait_until(lambda: found(options, stage="end"))
    assert found(options, stage="end")[0]["outcome"] == "aborted"
    log.close()


def test_an_end_that_was_not_waited_for_is_written_once(options):
    stuck, go_on = threading.Event(), threading.Event()

    def slow(descriptor):
        if stuck.is_set():
            go_on.wait(10)
        os.fdatasync(descriptor)

    log = AuditLog.open(replace(options, commit_timeout_s=0.1), calls=Calls(fdatasync=slow))
    record = log.begin(CHAT)
    stuck.set()
    record.end(Result("allowed"))
    wait_until(lambda: log.problem() == SILENT)
    stuck.clear()
    go_on.set()
    wait_until(lambda: log.problem() is None)
    log.event(CHAT, Result("allowed"))
    log.close()
    assert len(found(options, stage="end")) == 1
    assert verify_log(options.directory, home_trust(options)).exit_code == CLEAN


def test_ends_that_meet_a_full_disk_together_are_all_written_once(options):
    disk = FaultyDisk("write", errno.ENOSPC, times=3)
    log = AuditLog.open(options, calls=disk.calls())
    records = [log.begin(replace(CHAT, request_id=f"r{number}")) for number in range(16)]
    disk.active = True
    threads = [threading.Thread(target=record.end, args=(Result("allowed", 200),)) for record in records]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: len(found(options, stage="end")) == 16)
    log.close()
    assert {each["outcome"] for each in found(options, stage="end")} == {"allowed"}
    assert verify_log(options.directory, home_trust(options)).exit_code == CLEAN


def test_closing_while_the_disk_does_not_answer_does_not_wait_for_ever(options, caplog):
    stuck, go_on = threading.Event(), threading.Event()

    def slow(descriptor):
        if stuck.is_set():
            go_on.wait(10)
        os.fdatasync(descriptor)

    log = AuditLog.open(replace(options, commit_timeout_s=0.1), calls=Calls(fdatasync=slow))
    stuck.set()
    assert fails_to_write(log)
    log.close()
    assert "did not answer" in caplog.text
    go_on.set()
    log._threads[0].join()
    log._publisher.stop()
    log._journal.close()


def test_closing_without_space_keeps_what_is_there(options):
    disk = FaultyDisk("write", errno.ENOSPC, times=999)
    log = AuditLog.open(options, calls=disk.calls())
    disk.active = True
    assert fails_to_write(log)
    real_time.sleep(0.2)  # some tries that fail
    log.close()
    AuditLog.open(options).close()
    assert verify_log(options.directory, home_trust(options)).exit_code == CLEAN


def test_closing_while_the_writer_tries_again_is_final(options, monkeypatch):
    """Whatever the last try comes to, a closed log stays closed."""
    for times in (1, 999):
        disk = FaultyDisk("write", errno.ENOSPC, times=times)
        log = AuditLog.open(options, calls=disk.calls())
        disk.active = True
        assert fails_to_write(log)
        keep_up = log._journal.keep_up

        def closing(log=log, keep_up=keep_up):
            log._state = "closed"
            keep_up()

        monkeypatch.setattr(log._journal, "keep_up", closing)
        wait_until(lambda log=log: log._state == "closed")
        log._threads[0].join()
        assert log._state == "closed"
        log._publisher.stop()
        log._journal.close()


def test_between_two_tries_a_full_disk_is_left_alone(options):
    disk = FaultyDisk("write", errno.ENOSPC, times=99)
    log = AuditLog.open(replace(options, retry_s=3600), calls=disk.calls())
    disk.active = True
    assert fails_to_write(log)
    real_time.sleep(0.6)  # the writer looks every quarter of a second whether it is time
    assert disk.count == 1
    disk.active = False
    log.close()


def test_no_space_at_the_start_is_no_start(options):
    disk = FaultyDisk("write", errno.ENOSPC)
    disk.active = True
    with pytest.raises(AuditUnavailable, match="No space"):
        AuditLog.open(options, calls=disk.calls())
    assert not layout.segments(options.directory)
    AuditLog.open(options).close()
    assert verify_log(options.directory, home_trust(options)).exit_code == CLEAN


def test_no_space_at_the_end_loses_only_the_stop(options, caplog):
    disk = FaultyDisk("write", errno.ENOSPC, times=99)
    log = AuditLog.open(options, calls=disk.calls())
    log.begin(CHAT).end(Result("allowed"))
    disk.active = True
    log.close()
    assert "closed without its last records" in caplog.text
    assert not found(options, action="audit.stop")


def test_no_space_for_the_next_sealing_key_is_tried_again(options, time, monkeypatch):
    log = AuditLog.open(replace(options, epoch_s=60), clock=time.clock())
    real, tries = keys.save_seal_key, []

    def failing(directory, key):
        tries.append(key.epoch)
        if len(tries) <= 2:
            raise DiskFull("no space")
        real(directory, key)

    monkeypatch.setattr(keys, "save_seal_key", failing)
    time.pass_us(61_000_000)
    wait_until(lambda: len(tries) == 3 and log.problem() is None)
    log.event(CHAT, Result("allowed"))
    log.close()
    (present,) = options.keys.glob("audit-seal-*.key")
    assert parse_seal_key(present.read_text()).epoch == 1
    (first,) = keys.initial_seals(options.keys)
    trust = home_trust(options, seal_keys=(parse_seal_key(first.read_text()),))
    assert verify_log(options.directory, trust).exit_code == CLEAN


def test_denials_without_space_are_counted(options):
    disk = FaultyDisk("write", errno.ENOSPC, times=2)
    log = AuditLog.open(replace(options, denial_window_s=0.01), calls=disk.calls())
    disk.active = True
    assert fails_to_write(log)
    for _ in range(3):
        log.count_denial(Facts("r", "request.denied", address="10.0.0.9"), "bad token")
    wait_until(lambda: found(options, action="request.denied"))
    log.close()
    assert sum(each.get("suppressed", 1) for each in found(options, action="request.denied")) == 3


STRACED = """
import sys, time
from pathlib import Path
from chatsvc.audit.facts import Facts, Result
from chatsvc.audit.log import SILENT, AuditLog
from chatsvc.audit.options import AuditOptions
from chatsvc.errors import AuditUnavailable

home = Path(sys.argv[1])
log = AuditLog.open(AuditOptions(home / "audit", home / "keys", retry_s=0.05))
for number in range(int(sys.argv[2])):
    name = f"{sys.argv[3]}-{number}"
    try:
        log.event(Facts(name, "chat.generate"), Result("allowed"))
        print(name, flush=True)
    except AuditUnavailable:
        time.sleep(0.1)
log.close()
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize(
    "fault",
    ["write:error=ENOSPC:when=6..9", "write:error=EIO:when=7", "fdatasync:error=EIO:when=8"],
)
def test_faults_that_the_kernel_injects_lose_nothing_acknowledged(options, tmp_path, fault):
    segment = options.directory / layout.segment_name(0)
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", segment, "-e", "trace=write,fdatasync,ftruncate"]
    command = [*strace, "-e", f"inject={fault}", sys.executable, "-c", STRACED, tmp_path, "30", "n"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "ptrace" in done.stderr:
        pytest.skip("tracing is not allowed here")
    acknowledged = done.stdout.split()
    assert acknowledged
    assert len(acknowledged) < 30
    assert no_torn_line(options)
    AuditLog.open(options).close()
    assert set(acknowledged) <= {each["request_id"] for each in found(options, stage="event")}
    assert verify_log(options.directory, home_trust(options)).exit_code == CLEAN


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("call", ["fsync", "fdatasync"])
def test_at_whichever_sync_of_the_process_the_kernel_fails_nothing_acknowledged_is_lost(options, tmp_path, call, error):
    """Keys and folders too, from an empty home on; each run goes on in what the one before left."""
    acknowledged: set[str] = set()
    for nth in range(1, 60):
        strace = ["strace", "-f", "-qq", "-o", tmp_path / "trace", "-e", f"trace={call}"]
        command = [
            *strace,
            "-e",
            f"inject={call}:error={error}:when={nth}",
            sys.executable,
            "-c",
            STRACED,
            tmp_path,
            "5",
            str(nth),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if "ptrace" in done.stderr:
            pytest.skip("tracing is not allowed here")
        acknowledged |= set(done.stdout.split())
        if "INJECTED" not in (tmp_path / "trace").read_text():
            break
    else:
        pytest.fail("a sync always failed")
    AuditLog.open(options).close()
    assert no_torn_line(options)
    assert acknowledged <= {each["request_id"] for each in found(options, stage="event")}
    assert verify_log(options.directory, home_trust(options)).exit_code == CLEAN


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 64 KiB."""
    place = tmp_path / "tiny"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_really_full_disk_refuses_and_recovers(options, tiny_disk):
    small = replace(options, directory=tiny_disk / "audit")
    log = AuditLog.open(small)
    acknowledged = 0
    while not fails_to_write(log):
        acknowledged += 1
    assert log.problem()
    ballast = sorted(tiny_disk.rglob("*"))
    assert ballast
    subprocess.run(["mount", "-o", "remount,size=256k", tiny_disk], check=True)
    wait_until(lambda: log.problem() is None)
    log.begin(CHAT).end(Result("allowed"))
    log.close()
    assert len(found(small, stage="begin")) == acknowledged + 1
    assert verify_log(small.directory, home_trust(small)).exit_code == CLEAN
    assert all(line.startswith(b"{") for line in lines_of(small))
