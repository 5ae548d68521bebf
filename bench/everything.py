"""``make bench``: all measurements one after the other, each in a process of its own. Nearly two hours, alone."""

from __future__ import annotations

import subprocess
import sys

PROGRAMS = (
    "bench",
    "bench.profile",
    "bench.gap",
    "bench.prefix",
    "bench.quality",
    "bench.memory",
    "bench.crowd",
    "bench.logins",
    "bench.soak",
    "bench.audit",
    "bench.disk",
    "bench.sealed",
    "bench.kills",
)


def main() -> None:
    """Run them all; what fails is named at the end."""
    failed = []
    for program in PROGRAMS:
        print(f"==> python -m {program}", flush=True)
        if subprocess.run([sys.executable, "-m", program], check=False).returncode:
            failed.append(program)
    if failed:
        sys.exit(f"missed or failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
