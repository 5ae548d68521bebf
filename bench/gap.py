"""``python -m bench.gap``: the longest pause of eight running streams while a prompt of 4000 tokens joins.

Through the whole stack, with each runner. The gaps are those that clients see between two pieces of text, from the
moment the long prompt is sent until its first token is there; those before it are for comparison.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from bench import page, program
from bench.load import Sample, Streams, Target, chat, stream
from bench.processes import end_on_sigterm
from bench.shape import NUM_TEMPLATE_TOKENS, text_of_tokens
from bench.stack import shaped, stack

_NUM_STREAMS = 8
_NUM_LONG = 4000
_BEFORE_S = 3.0
_GOAL_MS = 300


@dataclass(frozen=True, slots=True)
class Join:
    """One long prompt that joined. Milliseconds; ``gaps`` are the worst of each stream meanwhile."""

    runner: str
    before: float
    gaps: Sequence[float]
    first: float
    problems: Sequence[str]

    @property
    def worst(self) -> float:
        """The longest gap of any stream."""
        return max(self.gaps)


def join(target: Target, runner: str, seed: int, max_tokens: int) -> Join:
    """Let the streams run, send the long prompt, look at everybody's times."""
    streams = Streams(target, _NUM_STREAMS)
    connection = target.connect()
    bodies = [_body(64, seed * 100 + number, max_tokens) for number in range(_NUM_STREAMS)]
    samples: list[Sample] = []
    thread = threading.Thread(target=lambda: samples.extend(streams.burst(bodies)))
    thread.start()
    time.sleep(_BEFORE_S)
    long = stream(target, connection, _body(_NUM_LONG, seed * 100 + 99, 2))
    thread.join()
    streams.close()
    connection.close()
    problems = {one.error for one in (*samples, long) if one.error}
    if any(one.ended < long.first for one in samples):
        problems.add("a stream ended before the long prompt's first token")
    return Join(
        runner,
        before=max(_worst(one.times, 0, long.started) for one in samples),
        gaps=[_worst(one.times, long.started, long.first) for one in samples],
        first=long.first_s * 1000,
        problems=sorted(problems),
    )


def _worst(times: Sequence[float], start: float, end: float) -> float:
    """The longest time between two tokens that overlaps with the time from ``start`` to ``end``, in milliseconds."""
    gaps = [later - earlier for earlier, later in itertools.pairwise(times) if later > start and earlier < end]
    return max(gaps, default=0.0) * 1000


def _body(num_tokens: int, seed: int, max_tokens: int) -> dict[str, object]:
    text = text_of_tokens(num_tokens - NUM_TEMPLATE_TOKENS, seed)
    return dict(chat([{"role": "user", "content": text}], max_tokens))


def main() -> None:
    """Measure, print, keep; exit code 1 when the default runner misses the goal."""
    end_on_sigterm()
    parser = program.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runner", nargs="+", choices=["native", "openvino"], default=["native", "openvino"])
    parser.add_argument("--tokens", type=int, default=700, help="of each running stream")
    arguments = parser.parse_args()
    joins = []
    for runner in arguments.runner:
        with stack(shaped(arguments.cache, runner)) as target:
            for number in range(arguments.rounds):
                joins.append(join(target, runner, number, arguments.tokens))
                print(joins[-1], flush=True)
    print(table(joins))
    if not arguments.not_kept:
        page.save("gap", {"joins": [asdict(one) for one in joins]}, table(joins))
    missed = [one for one in joins if one.problems or (one.runner == "native" and one.worst > _GOAL_MS)]
    sys.exit(1 if missed else 0)


def table(joins: Sequence[Join]) -> str:
    """Markdown, a row a runner."""
    rounds = len(joins) // len({one.runner for one in joins})
    heads = ("runner", f"worst gap of each of {rounds}, ms", "median over the streams", "before it joined")
    lines = [f"| {' | '.join(heads)} | its first token, s |", "|---|---|---|---|---|"]
    for runner in dict.fromkeys(one.runner for one in joins):
        those = [one for one in joins if one.runner == runner]
        worst = ", ".join(f"{one.worst:.0f}" for one in those)
        missed = " (missed)" if max(one.worst for one in those) > _GOAL_MS else ""
        usual = statistics.median(gap for one in those for gap in one.gaps)
        before = statistics.median(one.before for one in those)
        first = statistics.median(one.first for one in those) / 1000
        lines.append(f"| {runner} | {worst}{missed} | {usual:.0f} | {before:.0f} | {first:.1f} |")
    problems = sorted({problem for one in joins for problem in one.problems})
    return "\n".join([*lines, "", f"Goal: at most {_GOAL_MS} ms. {'; '.join(problems)}".rstrip()])


if __name__ == "__main__":
    main()
