"""``python -m bench.disk``: the whole service at 16 streams, with and without a disk that needs 10 ms for an fsync.

One service, whose disk is quick and slow in turn: a preloaded library (slow_sync.c) lets every fdatasync and fsync, of
the audit log and of the database alike, wait first. (Two services would differ in more than that: the placement of
their memory accounts for several per cent.) The result is the trimmed mean of the rounds' ratios, with its standard
error. Before, it is asked for one token at a time, which shows that the disk really is slow.
"""

from __future__ import annotations

import math
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bench import page, program
from bench.measure import Measurement, ServerSubject, measure
from bench.processes import end_on_sigterm
from bench.scenarios import Scenario
from bench.stack import shaped, stack

_NUM_STREAMS = 16
GOAL = 0.02  # of throughput
_SOURCE = Path(__file__).with_name("slow_sync.c")
_TRIMMED = 4  # a quarter of the rounds is left out at either end: what else the machine did


@dataclass(frozen=True, slots=True)
class Round:
    """The same work on both disks."""

    plain: Measurement
    slow: Measurement

    @property
    def log_ratio(self) -> float:
        """Of the throughputs, slow against plain."""
        return math.log(self.slow.tokens_per_s / self.plain.tokens_per_s)


class SlowDisk:
    """A disk that can be made slow while a service runs on it."""

    def __init__(self, cache: Path, delay_ms: int) -> None:
        self._delay_us = delay_ms * 1000
        self._random = random.Random(0)
        cache.mkdir(parents=True, exist_ok=True)
        self._switch = cache.resolve() / "slow-sync"
        library = cache.resolve() / "slow_sync.so"
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, _SOURCE], check=True)
        self.prefix = ("env", f"LD_PRELOAD={library}", f"SLOW_SYNC={self._switch}")
        self._set(0)

    def both(self, subject: ServerSubject, scenario: Scenario, num_streams: int, number: int) -> Round:
        """The same work on both in random order, so that passing disturbances do not always hit the same one."""
        found = {}
        for is_slow in self._random.sample((False, True), 2):
            self._set(self._delay_us if is_slow else 0)
            # Prompts of their own: those of the other side are in the prefix cache.
            found[is_slow] = measure(subject, scenario, num_streams, 2 * number + is_slow)
        self._set(0)
        return Round(plain=found[False], slow=found[True])

    def _set(self, delay_us: int) -> None:
        beside = self._switch.with_suffix(".new")
        beside.write_text(str(delay_us))
        beside.replace(self._switch)


def main() -> None:
    """Measure, print, keep."""
    end_on_sigterm()
    parser = program.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=64)
    parser.add_argument("--delay-ms", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=128)
    arguments = parser.parse_args()
    many = Scenario("disk", num_prompt=64, max_tokens=arguments.tokens, streams=(_NUM_STREAMS,))
    one = Scenario("one token", num_prompt=64, max_tokens=1, streams=(1,))
    disk = SlowDisk(arguments.cache, arguments.delay_ms)
    with stack(replace(shaped(arguments.cache), prefix=disk.prefix)) as target:
        subject = ServerSubject(target)
        measure(subject, many, _NUM_STREAMS, -1)
        single = [disk.both(subject, one, 1, number) for number in range(9)]
        rounds = []
        for number in range(arguments.rounds):
            rounds.append(disk.both(subject, many, _NUM_STREAMS, number))
            speeds = [f"{side.tokens_per_s:.1f}" for side in (rounds[-1].plain, rounds[-1].slow)]
            print(f"round {number}: {' and '.join(speeds)} tokens/s", flush=True)
    problems = {problem for each in rounds for side in (each.plain, each.slow) for problem in side.problems}
    text = table(rounds, single, arguments.delay_ms)
    print(text)
    if not arguments.not_kept:
        kept = [{"plain": asdict(each.plain), "slow": asdict(each.slow)} for each in [*rounds, *single]]
        page.save("disk", {"rounds": kept}, text)
    if problems:
        sys.exit("; ".join(sorted(problems)))


def trimmed_mean(values: Sequence[float]) -> tuple[float, float]:
    """The mean without the outermost quarters, and its standard error.

    The error is Tukey's and McLaughlin's: values that are left out count as the outermost remaining ones, and the
    standard deviation of all is divided by the remaining share. Infinite for a single value.
    """
    ordered, count = sorted(values), len(values)
    cut = count // _TRIMMED
    inner = ordered[cut : count - cut]
    if count < 2:
        return inner[0], math.inf
    drawn_in = [inner[0]] * cut + inner + [inner[-1]] * cut
    return statistics.fmean(inner), statistics.stdev(drawn_in) * math.sqrt(count) / len(inner)


def judge(lost: float, error: float) -> str:
    """Whether less is lost than the goal allows; within two standard errors it is undecided."""
    if abs(lost - GOAL) <= 2 * error:
        return "undecided"
    return "under" if lost < GOAL else "missed"


def table(rounds: Sequence[Round], single: Sequence[Round], delay_ms: int) -> str:
    """Markdown."""
    lines = [f"| {_NUM_STREAMS} streams, {len(rounds)} rounds | plain | {delay_ms} ms slower |", "|---|---|---|"]
    for name, value, form in (
        ("tokens/s, median", "tokens_per_s", ".1f"),
        ("first token, median, s", "first_s", ".3f"),
    ):
        cells = [statistics.median(getattr(side, value) for side in sides) for sides in _sides(rounds)]
        lines.append(f"| {name} | {cells[0]:{form}} | {cells[1]:{form}} |")
    alone = [statistics.median(one.first_s * 1000 for one in sides) for sides in _sides(single)]
    lines.append(f"| one request alone, first token, ms | {alone[0]:.0f} | {alone[1]:.0f} |")
    mean, error = trimmed_mean([each.log_ratio for each in rounds])
    lost = -math.expm1(mean)
    lines.append(f"| throughput lost to the slow disk | | {lost:+.1%} ± {error:.1%} |")
    lines.append(f"| goal: under {GOAL:.0%} | | {judge(lost, error)} |")
    how = "Lost: the mean of the middle half of the rounds' log ratios, ± its standard error."
    return "\n".join([*lines, "", f"{how} Within two standard errors of the goal the result is undecided."])


def _sides(rounds: Sequence[Round]) -> tuple[list[Measurement], list[Measurement]]:
    return [each.plain for each in rounds], [each.slow for each in rounds]


if __name__ == "__main__":
    main()
