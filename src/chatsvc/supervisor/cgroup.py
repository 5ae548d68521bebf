"""How much memory is left for one more process: the machine's and the control group's word, whichever is less."""

from __future__ import annotations

from pathlib import Path

_UNLIMITED = 1 << 60
_HEADROOM = 1.05


def two_fit(pid: int, proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> bool:
    """Whether a process that needs as much as ``pid`` ever did fits beside it."""
    needed_bytes = _field_kib(proc / str(pid) / "status", "VmHWM") * 1024 * _HEADROOM
    return needed_bytes < available_bytes(proc, cgroup)


def available_bytes(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """What can still be taken without the kernel killing somebody."""
    machine = _field_kib(proc / "meminfo", "MemAvailable") * 1024
    return min([machine, *(_group_left(group) for group in _groups(proc, cgroup))])


def _field_kib(path: Path, name: str) -> int:
    for line in path.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return 0


def _groups(proc: Path, cgroup: Path) -> list[Path]:
    """Directories that may limit this process, of cgroup version 1 and 2; in a container the path ends at the root."""
    found: list[Path] = []
    for line in (proc / "self" / "cgroup").read_text(encoding="ascii").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "memory" in controllers.split(","):
            base = cgroup / "memory" if controllers else cgroup
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
    """Cached files that nobody reads: the kernel takes them back first."""
    path = group / "memory.stat"
    fields = dict(line.split() for line in path.read_text(encoding="ascii").splitlines()) if path.exists() else {}
    return int(fields.get("total_inactive_file", fields.get("inactive_file", 0)))
