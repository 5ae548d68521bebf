"""The memory and tasks (processes and threads) that the machine and this process's control group still allow."""

from __future__ import annotations

from pathlib import Path

_UNLIMITED = 1 << 60
_HEADROOM = 1.05


def two_fit(pid: int, proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> bool:
    """Whether memory holds a second process as large as the peak of ``pid``."""
    needed_bytes = _field_kib(proc / str(pid) / "status", "VmHWM") * 1024 * _HEADROOM
    return needed_bytes < available_bytes(proc, cgroup)


def available_bytes(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that can be allocated before the kernel kills a process: the machine's or the group's, if less."""
    machine = _field_kib(proc / "meminfo", "MemAvailable") * 1024
    return min([machine, *(_group_left(group) for group in _groups(proc, cgroup))])


def _field_kib(path: Path, name: str) -> int:
    for line in path.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return 0


def max_tasks(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """How many processes and threads the control group may have."""
    return min([_UNLIMITED, *(_number(group, "pids.max") or _UNLIMITED for group in _groups(proc, cgroup, "pids"))])


def _groups(proc: Path, cgroup: Path, controller: str = "memory") -> list[Path]:
    """Directories whose limits may apply to this process, of cgroup version 1 and 2; in a container the root itself."""
    found: list[Path] = []
    for line in (proc / "self" / "cgroup").read_text(encoding="ascii").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            base = cgroup / controller if controllers else cgroup
            found += [base / path.lstrip("/"), base]
    return [group for group in found if group.is_dir()]


def _group_left(group: Path) -> int:
    limit = _number(group, "memory.max", "memory.limit_in_bytes")
    used = _number(group, "memory.current", "memory.usage_in_bytes")
    if limit is None or used is None or limit >= _UNLIMITED:
        return _UNLIMITED
    return limit - used + _reclaimable(group)


def _number(group: Path, *names: str) -> int | None:
    for name in names:
        path = group / name
        if path.exists():
            text = path.read_text(encoding="ascii").strip()
            return int(text) if text.isdigit() else _UNLIMITED
    return None


def _reclaimable(group: Path) -> int:
    """The page cache that is not in use: the kernel frees it first."""
    path = group / "memory.stat"
    fields = dict(line.split() for line in path.read_text(encoding="ascii").splitlines()) if path.exists() else {}
    return int(fields.get("total_inactive_file", fields.get("inactive_file", 0)))
