"""``python -m bench.disk``: the whole service at 16 streams, with and without a disk that needs 10 ms for an fsync.

Two services with the same model, each run by strace, which stops for fdatasync and fsync alone (a seccomp filter: no
other system call is touched) and holds them back by 0 or by 10 ms, of the audit log and of the database alike. They
are measured in turn; what counts is the median of the rounds' own ratios. Before, each is asked for one token at a
time, which shows that the disk really is slow.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bench import page
from bench.measure import Measurement, ServerSubject, measure
from bench.processes import end_on_sigterm
from bench.scenarios import Scenario
from bench.stack import shaped, stack
from bench.supply import default_cache

_NUM_STREAMS = 16
_GOAL = 0.02
_TRACE = ("strace", "-D", "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=fdatasync,fsync")


@dataclass(frozen=True, slots=True)
class Round:
    """The same work on both disks."""

    plain: Measurement
    slow: Measurement

    @property
    def kept(self) -> float:
        """What is left of the throughput."""
        return self.slow.tokens_per_s / self.plain.tokens_per_s


def main() -> None:
    """Measure, print, keep."""
    end_on_sigterm()
    parser = argparse.ArgumentParser(prog="python -m bench.disk", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--delay-ms", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--not-kept", action="store_true", help="only print")
    arguments = parser.parse_args()
    many = Scenario("disk", num_prompt=64, max_tokens=arguments.tokens, streams=(_NUM_STREAMS,))
    one = Scenario("one token", num_prompt=64, max_tokens=1, streams=(1,))
    with ExitStack() as exits:
        subjects = []
        for name, delay_ms in (("plain", 0), ("slow", arguments.delay_ms)):
            delay = (*_TRACE, "-e", f"inject=fdatasync,fsync:delay_enter={delay_ms * 1000}") if delay_ms else _TRACE
            options = replace(shaped(arguments.cache), home=arguments.cache / f"home-disk-{name}", prefix=delay)
            subjects.append(ServerSubject(exits.enter_context(stack(options))))
        plain, slow = subjects
        for subject in subjects:
            measure(subject, many, _NUM_STREAMS, -1)
        single = [Round(measure(plain, one, 1, number), measure(slow, one, 1, number)) for number in range(9)]
        rounds = [_round(plain, slow, many, number) for number in range(arguments.rounds)]
    problems = {problem for each in rounds for side in (each.plain, each.slow) for problem in side.problems}
    text = table(rounds, single, arguments.delay_ms)
    print(text)
    if not arguments.not_kept:
        kept = [{"plain": asdict(each.plain), "slow": asdict(each.slow)} for each in [*rounds, *single]]
        page.save("disk", {"rounds": kept}, text)
    if problems:
        sys.exit("; ".join(sorted(problems)))


def _round(plain: ServerSubject, slow: ServerSubject, scenario: Scenario, number: int) -> Round:
    """Who is first changes, so that a machine that grows slower favours nobody."""
    if number % 2:
        later = measure(slow, scenario, _NUM_STREAMS, number)
        found = Round(measure(plain, scenario, _NUM_STREAMS, number), later)
    else:
        found = Round(measure(plain, scenario, _NUM_STREAMS, number), measure(slow, scenario, _NUM_STREAMS, number))
    print(f"round {number}: {found.plain.tokens_per_s:.1f} and {found.slow.tokens_per_s:.1f} tokens/s", flush=True)
    return found


def table(rounds: Sequence[Round], single: Sequence[Round], delay_ms: int) -> str:
    """Markdown."""
    ratios = sorted(each.kept for each in rounds)
    lost = 1 - statistics.median(ratios)
    missed = "" if lost < _GOAL else " (missed)"
    lines = [f"| {_NUM_STREAMS} streams, {len(rounds)} rounds | plain | {delay_ms} ms slower |", "|---|---|---|"]
    for name, value, form in (
        ("tokens/s, median", "tokens_per_s", ".1f"),
        ("first token, median, s", "first_s", ".3f"),
    ):
        cells = [statistics.median(getattr(side, value) for side in sides) for sides in _sides(rounds)]
        lines.append(f"| {name} | {cells[0]:{form}} | {cells[1]:{form}} |")
    alone = [statistics.median(one.first_s * 1000 for one in sides) for sides in _sides(single)]
    lines.append(f"| one request alone, first token, ms | {alone[0]:.0f} | {alone[1]:.0f} |")
    spread = f"{1 - ratios[-1]:+.1%} to {1 - ratios[0]:+.1%}"
    sentence = f"Throughput lost to the slow disk: {lost:+.1%}{missed}, goal under {_GOAL:.0%}; single rounds {spread}."
    return "\n".join([*lines, "", sentence])


def _sides(rounds: Sequence[Round]) -> tuple[list[Measurement], list[Measurement]]:
    return [each.plain for each in rounds], [each.slow for each in rounds]


if __name__ == "__main__":
    main()
