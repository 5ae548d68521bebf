"""``python -m bench.memory``: the whole service inside a memory cgroup, with sequences of 1000 tokens running.

Engine, web process and supervisor count; the kernel's limit is real and there is no swap, so what does not fit is
killed. Needs a writable memory controller (cgroup v1 or v2), which usually means root. Bounded: one burst.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bench import cpu, page, program
from bench.measure import ServerSubject
from bench.processes import end_on_sigterm
from bench.scenarios import Scenario
from bench.stack import shaped, stack

_NUM_TOKENS = 1000
_MIB = 1024 * 1024
_SETTLE_S = 1
# What supervisor and web process take; the rest is the engine's, which is told so.
_AROUND_MIB = 175
_CASES = (
    ("native", 1400, 8),
    ("native", 1200, 8),
    ("native", 2000, 16),
    ("openvino", 1400, 8),
    ("openvino-int4", 1200, 8),
)


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A memory cgroup of either version; the two name the same things differently."""

    path: Path
    is_v1: bool

    @classmethod
    def make(cls, limit_mib: int) -> Cgroup:
        """A new one with a limit and no swap.

        Raises:
            OSError: the controller is not writable here.
        """
        v1 = Path("/sys/fs/cgroup/memory")
        is_v1 = (v1 / "memory.limit_in_bytes").exists()
        path = (v1 if is_v1 else Path("/sys/fs/cgroup")) / f"chatsvc-bench-{os.getpid()}"
        path.mkdir()
        made = cls(path, is_v1)
        (path / ("memory.limit_in_bytes" if is_v1 else "memory.max")).write_text(str(limit_mib * _MIB))
        with contextlib.suppress(OSError):  # a kernel without swap accounting has no such file
            (path / ("memory.swappiness" if is_v1 else "memory.swap.max")).write_text("0")
        return made

    def peak_mib(self) -> int:
        """The most that was charged, page cache and all."""
        return int((self.path / ("memory.max_usage_in_bytes" if self.is_v1 else "memory.peak")).read_text()) // _MIB

    def anonymous_mib(self) -> int:
        """What cannot be given back, now."""
        stat = dict(line.split() for line in (self.path / "memory.stat").read_text().splitlines())
        return int(stat["total_rss" if self.is_v1 else "anon"]) // _MIB

    def num_killed(self) -> int:
        """How many processes the kernel killed because memory ran out."""
        text = (self.path / ("memory.oom_control" if self.is_v1 else "memory.events")).read_text()
        return int(dict(line.split() for line in text.splitlines()).get("oom_kill", 0))

    def by_process(self) -> dict[str, int]:
        """Anonymous MiB of each process, by what it is."""
        return cpu.anonymous_mib_by_role(map(int, (self.path / "cgroup.procs").read_text().split()))

    def remove(self) -> None:
        """Once its processes have ended."""
        for _ in range(50):
            with contextlib.suppress(OSError):
                self.path.rmdir()
                return
            time.sleep(0.1)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run inside the limit came to."""

    runner: str
    limit_mib: int
    num_sequences: int
    num_served: int
    num_killed: int
    peak_mib: int
    anonymous_mib: int
    by_process_mib: dict[str, int]
    problems: list[str]

    @property
    def lives(self) -> bool:
        """Whether every sequence was served and no process was killed."""
        return self.num_served == self.num_sequences and not self.num_killed


@contextlib.contextmanager
def limited(limit_mib: int) -> Iterator[Cgroup]:
    """A cgroup for the length of the block."""
    cgroup = Cgroup.make(limit_mib)
    try:
        yield cgroup
    finally:
        cgroup.remove()


def run(cache: Path, runner: str, limit_mib: int, num_sequences: int) -> Outcome:
    """Start the service inside the limit and let it serve one burst of long sequences."""
    scenario = Scenario("memory", num_prompt=_NUM_TOKENS - 64, max_tokens=64, streams=(num_sequences,))
    with limited(limit_mib) as cgroup:
        settings = {
            "engine.memory_limit_mb": limit_mib - _AROUND_MIB,
            "chat.deadline_s": 1800,  # a busy machine must not look like a small one
        }
        with stack(replace(shaped(cache, runner, settings), cgroup=cgroup.path)) as target:
            turns = list(scenario.turns(num_sequences, seed=7))
            (samples,) = ServerSubject(target).run(turns)
            time.sleep(_SETTLE_S)
            return Outcome(
                runner=runner,
                limit_mib=limit_mib,
                num_sequences=num_sequences,
                num_served=sum(not one.error and one.num_completion == scenario.max_tokens for one in samples),
                num_killed=cgroup.num_killed(),
                peak_mib=cgroup.peak_mib(),
                anonymous_mib=cgroup.anonymous_mib(),
                by_process_mib=cgroup.by_process(),
                problems=sorted({one.error for one in samples if one.error}),
            )


def main() -> None:
    """Run every case (or the one that is asked for), write, and end with 1 when the service did not live in one."""
    end_on_sigterm()
    parser = program.parser(__doc__)
    parser.add_argument("--case", nargs=3, metavar=("RUNNER", "MIB", "SEQUENCES"), help="only this one; not kept")
    arguments = parser.parse_args()
    cases = [(arguments.case[0], int(arguments.case[1]), int(arguments.case[2]))] if arguments.case else _CASES
    outcomes = []
    for runner, limit_mib, num_sequences in cases:
        outcomes.append(run(arguments.cache, runner, limit_mib, num_sequences))
        print(json.dumps({**asdict(outcomes[-1]), "lives": outcomes[-1].lives}), flush=True)
    if not (arguments.case or arguments.not_kept):
        page.save("memory", {"outcomes": [asdict(one) for one in outcomes]}, _table(outcomes))
    sys.exit(0 if all(one.lives for one in outcomes) else 1)


def _table(outcomes: Sequence[Outcome]) -> str:
    lines = ["| runner | limit MiB | sequences of 1000 | served | killed | peak MiB | anonymous MiB by process |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for one in outcomes:
        sizes = ", ".join(f"{role} {size}" for role, size in one.by_process_mib.items())
        counts = f"{one.limit_mib} | {one.num_sequences} | {one.num_served} | {one.num_killed} | {one.peak_mib}"
        lines.append(f"| {one.runner} | {counts} | {sizes} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
