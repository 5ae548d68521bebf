"""``python -m bench.disk``: the whole service at 16 streams, with and without a disk that needs 10 ms for an fsync.

Two services with the same model, each run by strace, which stops for fdatasync and fsync alone (a seccomp filter: no
other system call is touched) and holds them back by 0 or by 10 ms, of the audit log and of the database alike. They
are measured in turn; what counts is the trimmed mean of the rounds' own ratios, beside what chance does to it. Before,
each is asked for one token at a time, which shows that the disk really is slow.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace

from bench import page, program
from bench.measure import Measurement, ServerSubject, measure
from bench.processes import end_on_sigterm
from bench.scenarios import Scenario
from bench.stack import shaped, stack

_NUM_STREAMS = 16
_GOAL = 0.02
_TRIMMED = 4  # a quarter of the rounds is left out at either end: what else the machine did
_TRACE = ("strace", "-D", "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=fdatasync,fsync")


@dataclass(frozen=True, slots=True)
class Round:
    """The same work on both disks."""

    plain: Measurement
    slow: Measurement

    @property
    def log_ratio(self) -> float:
        """Of the throughputs, slow against plain."""
        return math.log(self.slow.tokens_per_s / self.plain.tokens_per_s)


def main() -> None:
    """Measure, print, keep."""
    end_on_sigterm()
    parser = program.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--delay-ms", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=128)
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


def trimmed_mean(values: Sequence[float]) -> tuple[float, float]:
    """The mean without the outermost quarters, and its standard error.

    The error is Tukey's and McLaughlin's: values that are left out count as the outermost ones that are not, and the
    deviation of all of them is divided by the share that is left. Endless for a single value, which tells nothing.
    """
    ordered, count = sorted(values), len(values)
    cut = count // _TRIMMED
    inner = ordered[cut : count - cut]
    if count < 2:
        return inner[0], math.inf
    drawn_in = [inner[0]] * cut + inner + [inner[-1]] * cut
    return statistics.fmean(inner), statistics.stdev(drawn_in) * math.sqrt(count) / len(inner)


def judge(lost: float, error: float) -> str:
    """Whether less is lost than the goal allows; within two standard errors nobody can say."""
    if abs(lost - _GOAL) <= 2 * error:
        return "cannot be told apart"
    return "under" if lost < _GOAL else "missed"


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
    lines.append(f"| goal: under {_GOAL:.0%} | | {judge(lost, error)} |")
    how = "Lost: from the mean of the middle half of the rounds' own log ratios, ± its standard error."
    return "\n".join([*lines, "", f"{how} A goal within two of them cannot be told apart."])


def _sides(rounds: Sequence[Round]) -> tuple[list[Measurement], list[Measurement]]:
    return [each.plain for each in rounds], [each.slow for each in rounds]


if __name__ == "__main__":
    main()
