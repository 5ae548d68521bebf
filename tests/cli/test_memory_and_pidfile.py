"""Small parts of the supervisor: what memory is left, and who serves a home."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chatsvc import pidfile
from chatsvc.cli import memory
from chatsvc.errors import OperatorError


@pytest.fixture
def machine(tmp_path: Path):
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "7").mkdir()
    (proc / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable: 4000000 kB\n")
    (proc / "7" / "status").write_text("Name: x\nVmHWM: 1000000 kB\n")
    (proc / "self" / "cgroup").write_text("0::/a\n")
    (cgroup / "a").mkdir(parents=True)
    return proc, cgroup


def test_without_a_limit_the_machine_decides(machine) -> None:
    proc, cgroup = machine
    assert memory.available_bytes(proc, cgroup) == 4_000_000 * 1024
    assert memory.two_fit(7, proc, cgroup)


def test_a_group_of_version_2_limits(machine) -> None:
    proc, cgroup = machine
    (cgroup / "a" / "memory.max").write_text("2000000000\n")
    (cgroup / "a" / "memory.current").write_text("1500000000\n")
    (cgroup / "a" / "memory.stat").write_text("anon 5\ninactive_file 100000000\n")
    assert memory.available_bytes(proc, cgroup) == 600_000_000
    assert not memory.two_fit(7, proc, cgroup)


def test_a_group_of_version_1_limits_and_unlimited_is_no_limit(machine) -> None:
    proc, cgroup = machine
    (proc / "self" / "cgroup").write_text("5:cpu:/b\n4:memory:/not-here\n0::/\n")
    (cgroup / "memory").mkdir()
    (cgroup / "memory" / "memory.limit_in_bytes").write_text("1000000000")
    (cgroup / "memory" / "memory.usage_in_bytes").write_text("400000000")
    (cgroup / "memory.max").write_text("max")
    (cgroup / "memory.current").write_text("1")
    assert memory.available_bytes(proc, cgroup) == 600_000_000


def test_this_machine_has_some_memory_left() -> None:
    assert memory.available_bytes() > 0


def test_one_process_serves_a_home_and_others_can_tell(tmp_path: Path) -> None:
    assert pidfile.serving_pid(tmp_path) is None
    with pidfile.hold(tmp_path):
        assert pidfile.serving_pid(tmp_path) == os.getpid()
        with pytest.raises(OperatorError, match=f"served already by process {os.getpid()}"), pidfile.hold(tmp_path):
            pass
    assert pidfile.serving_pid(tmp_path) is None


def test_a_file_that_a_killed_process_left_is_free(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from chatsvc import pidfile\n"
        "with pidfile.hold(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert pidfile.pidfile_path(tmp_path).read_text().strip().isdigit()
    assert pidfile.serving_pid(tmp_path) is None
    with pidfile.hold(tmp_path):
        pass


def test_the_serving_process_is_told_to_swap(tmp_path: Path) -> None:
    assert not pidfile.tell_to_swap(tmp_path)
    received = []
    before = signal.signal(signal.SIGHUP, lambda number, _frame: received.append(number))
    try:
        with pidfile.hold(tmp_path):
            assert pidfile.tell_to_swap(tmp_path)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert received == [signal.SIGHUP]
