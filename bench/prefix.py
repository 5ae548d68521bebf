"""``python -m bench.prefix``: what the prefix cache saves a principal, and that it reveals nothing to another.

Through the whole stack, in the same order again and again, one request at a time but for the last ones. The first turn
of a conversation has a prompt of 1000 tokens; first-token times are then taken of

1. its second turn, and a new conversation of the same lengths (cold),
2. the first turn's prompt, asked again by the same principal,
3. that prompt asked by another principal, and a prompt of the same length that no principal has asked (unknown),
4. sixteen prompts that one principal sends at once, of 564 tokens each, of which the first 500 are the same in all, as
   behind a long system prompt, or differ (medians of the sixteen).

The two of (3) must take equally long: if one were faster, it would reveal what others ask. They are compared pair by
pair with a two-sided sign test.
"""

from __future__ import annotations

import itertools
import math
import statistics
import sys
from collections.abc import Mapping, Sequence

from bench import page, program
from bench.load import Streams, Target, chat, stream
from bench.processes import end_on_sigterm
from bench.shape import NUM_TEMPLATE_TOKENS, text_of_tokens
from bench.stack import as_other, shaped, stack

_NUM_FIRST = 1000
_NUM_ANSWER = 8
_NUM_QUESTION = 16
_NUM_TOGETHER = 16
_NUM_BEGINNING = 500
_NUM_OWN = 64
_GOAL_RATIO = 10
_CHANCE = 0.01
_MAX_DIFFERENCE = 0.03
_LEAST_ROUNDS = 8

Messages = list[dict[str, str]]


def first_turn(seed: int) -> Messages:
    """A prompt of 1000 tokens, template included."""
    return [{"role": "user", "content": text_of_tokens(_NUM_FIRST - NUM_TEMPLATE_TOKENS, seed)}]


def second_turn(seed: int) -> Messages:
    """The same conversation after a short answer, with a short question more."""
    answer = {"role": "assistant", "content": text_of_tokens(_NUM_ANSWER, seed + 1)}
    return [*first_turn(seed), answer, {"role": "user", "content": text_of_tokens(_NUM_QUESTION, seed + 2)}]


def measure(target: Target, rounds: int, first_seed: int = 1000) -> dict[str, list[float]]:
    """Seconds to the first token, by what was asked."""
    other = as_other(target)
    seeds = itertools.count(first_seed, 10)
    times: dict[str, list[float]] = {}
    for number in range(rounds):
        known, unknown, cold = next(seeds), next(seeds), next(seeds)
        _ask(target, first_turn(known))
        asked = [("another's", first_turn(known)), ("unknown", first_turn(unknown))]
        for name, messages in reversed(asked) if number % 2 else asked:
            times.setdefault(name, []).append(_ask(other, messages))
        times.setdefault("again", []).append(_ask(target, first_turn(known)))
        times.setdefault("second turn", []).append(_ask(target, second_turn(known)))
        times.setdefault("cold", []).append(_ask(target, second_turn(cold)))
        times.setdefault("16 alike", []).append(_together(target, [known] * _NUM_TOGETHER))
        times.setdefault("16 unlike", []).append(_together(target, [next(seeds) for _ in range(_NUM_TOGETHER)]))
    return times


def _ask(target: Target, messages: Messages) -> float:
    connection = target.connect()
    sample = stream(target, connection, chat(messages, 2))
    connection.close()
    if sample.error:
        raise RuntimeError(sample.error)
    return sample.first_s


def _together(target: Target, beginnings: Sequence[int]) -> float:
    """The median time to the first token of prompts sent at once, each with its own end behind the beginning given."""
    bodies = []
    for number, seed in enumerate(beginnings):
        text = text_of_tokens(_NUM_BEGINNING, seed + 3) + text_of_tokens(_NUM_OWN - NUM_TEMPLATE_TOKENS, seed + number)
        bodies.append(dict(chat([{"role": "user", "content": text}], 2)))
    streams = Streams(target, len(bodies))
    samples = streams.burst(bodies)
    streams.close()
    if problems := {sample.error for sample in samples if sample.error}:
        raise RuntimeError(", ".join(problems))
    return statistics.median(sample.first_s for sample in samples)


def chance(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The p-value of a two-sided sign test over the pairs."""
    signs = [one < other for one, other in zip(ours, theirs, strict=True) if one != other]
    extreme = max(sum(signs), len(signs) - sum(signs))
    tail = sum(math.comb(len(signs), count) for count in range(extreme, len(signs) + 1))
    return min(1.0, 2 * tail / 2 ** len(signs))


def judge(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The figures that the goals are about."""
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        "sooner": median["cold"] / median["second turn"],
        "difference": median["another's"] / median["unknown"] - 1,
        "chance": chance(times["another's"], times["unknown"]),
    }


def table(times: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Markdown, a row a runner."""
    names = ("cold", "second turn", "again", "another's", "unknown", "16 alike", "16 unlike")
    rounds = len(next(iter(times.values()))["cold"])
    lines = [f"| first token, ms, medians of {rounds} | " + " | ".join(names) + " | second turn sooner by |"]
    lines += ["|---|" + "---|" * (len(names) + 1)]
    notes = []
    for runner, values in times.items():
        found = judge(values)
        cells = [f"{statistics.median(values[name]) * 1000:.0f}" for name in names]
        missed = "" if found["sooner"] >= _GOAL_RATIO else " (missed)"
        lines.append(f"| {runner} | " + " | ".join(cells) + f" | {found['sooner']:.1f}{missed} |")
        notes.append(
            f"{runner}: another's prompt against an unknown one {found['difference']:+.1%}; "
            f"sign test: p = {found['chance']:.2f}{'' if _is_silent(found) else ' (they differ)'}."
        )
    return "\n".join([*lines, "", f"Goal: the second turn {_GOAL_RATIO} times sooner.", "", *notes])


def _is_silent(found: Mapping[str, float]) -> bool:
    return found["chance"] >= _CHANCE or abs(found["difference"]) <= _MAX_DIFFERENCE


def main() -> None:
    """Measure, print, keep; exit code 1 when the default runner misses a goal."""
    end_on_sigterm()
    parser = program.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=_LEAST_ROUNDS)
    parser.add_argument("--runner", nargs="+", choices=["native", "openvino"], default=["native", "openvino"])
    arguments = parser.parse_args()
    if arguments.rounds < _LEAST_ROUNDS:
        parser.error(f"with fewer than {_LEAST_ROUNDS} pairs a sign test can never be significant")
    times = {}
    for runner in arguments.runner:
        with stack(shaped(arguments.cache, runner)) as target:
            measure(target, 1, first_seed=0)  # warms up
            times[runner] = measure(target, arguments.rounds)
    print(table(times))
    if not arguments.not_kept:
        page.save("prefix", {"first_s": times}, table(times))
    found = judge(next(iter(times.values())))
    sys.exit(0 if found["sooner"] >= _GOAL_RATIO and _is_silent(found) else 1)


if __name__ == "__main__":
    main()
