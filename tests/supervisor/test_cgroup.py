"""How much memory is left for a second engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from chatsvc.supervisor import cgroup


@pytest.fixture
def machine(tmp_path: Path):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "7").mkdir()
    (proc / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable: 4000000 kB\n")
    (proc / "7" / "status").write_text("Name: x\nVmHWM: 1000000 kB\n")
    (proc / "self" / "cgroup").write_text("0::/a\n")
    (groups / "a").mkdir(parents=True)
    return proc, groups


def test_without_a_limit_the_machine_decides(machine) -> None:
    proc, groups = machine
    assert cgroup.available_bytes(proc, groups) == 4_000_000 * 1024
    assert cgroup.two_fit(7, proc, groups)


def test_a_group_of_version_2_limits(machine) -> None:
    proc, groups = machine
    (groups / "a" / "memory.max").write_text("2000000000\n")
    (groups / "a" / "memory.current").write_text("1500000000\n")
    (groups / "a" / "memory.stat").write_text("anon 5\ninactive_file 100000000\n")
    assert cgroup.available_bytes(proc, groups) == 600_000_000
    assert not cgroup.two_fit(7, proc, groups)


def test_a_group_of_version_1_limits_and_unlimited_is_no_limit(machine) -> None:
    proc, groups = machine
    (proc / "self" / "cgroup").write_text("5:cpu:/b\n4:memory:/not-here\n0::/\n")
    (groups / "memory").mkdir()
    (groups / "memory" / "memory.limit_in_bytes").write_text("1000000000")
    (groups / "memory" / "memory.usage_in_bytes").write_text("400000000")
    (groups / "memory.max").write_text("max")
    (groups / "memory.current").write_text("1")
    assert cgroup.available_bytes(proc, groups) == 600_000_000


def test_this_machine_has_some_memory_left() -> None:
    assert cgroup.available_bytes() > 0


def test_a_group_limits_its_processes_and_threads(machine) -> None:
    proc, groups = machine
    assert cgroup.max_tasks(proc, groups) > 2**32
    (groups / "a" / "pids.max").write_text("256\n")
    assert cgroup.max_tasks(proc, groups) == 256
    (groups / "a" / "pids.max").write_text("max\n")
    (proc / "self" / "cgroup").write_text("5:pids:/b\n0::/\n")
    (groups / "pids" / "b").mkdir(parents=True)
    (groups / "pids" / "b" / "pids.max").write_text("64\n")
    assert cgroup.max_tasks(proc, groups) == 64
