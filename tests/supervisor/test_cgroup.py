"""How much memory is left for a second engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from chatsvc.supervisor import cgroup


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
