"""Processor seconds and memory by process. Linux only (/proc). Knows nothing about what is measured."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
# The words of a command line that say which of ours it is; the first that fits counts.
_ROLES = {
    "engine": ("chatsvc.cli.main engine", "bench.inprocess"),
    "web": ("gunicorn",),
    "supervisor": ("chatsvc.cli.main serve",),
    "nginx": ("nginx",),
    "llama.cpp": ("llama-server",),
    "vllm": ("vllm", "VLLM"),
}


def seconds_by_role(root: int) -> dict[str, float]:
    """User and system time so far of the processes below ``root``, itself left out, by role."""
    totals: dict[str, float] = {}
    for pid in descendants(root):
        try:
            role = role_of(pid)
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        totals[role] = totals.get(role, 0.0) + (int(fields[11]) + int(fields[12])) / _TICKS
    return totals


def difference(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What was used between two readings, by role; roles that used nothing are left out."""
    used = {role: round(seconds - before.get(role, 0.0), 3) for role, seconds in after.items()}
    return {role: seconds for role, seconds in used.items() if seconds > 0}


def anonymous_mib_by_role(pids: Iterable[int]) -> dict[str, int]:
    """Memory that is the processes' own, by role."""
    sizes: dict[str, int] = {}
    for pid in pids:
        try:
            role = role_of(pid)
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue  # it has just ended
        anonymous = next(int(line.split()[1]) for line in rollup if line.startswith("Anonymous:"))
        sizes[role] = sizes.get(role, 0) + anonymous // 1024
    return sizes


def role_of(pid: int) -> str:
    """What a process is, from its command line."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    for role, words in _ROLES.items():
        if any(word in command for word in words):
            return role
    return "other"


def descendants(root: int) -> list[int]:
    """All processes below one."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue  # it has just ended
            children.setdefault(parent, []).append(int(folder.name))
    found, unseen = [], [root]
    while unseen:
        below = children.get(unseen.pop(), [])
        found += below
        unseen += below
    return found
