"""``python -m bench``: our whole stack with each runner beside its engine alone and llama.cpp's server, in one run.

Every server is up for the whole run and is measured in turn at each number of streams, so that what else the machine
does meets them all alike; a table shows medians over the rounds. Writes results.json and the plots below docs/bench,
and the tables of docs/explanation/performance.md; what a run does not measure stays as it was.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
from collections.abc import Sequence

from bench import machine, page, program, report
from bench.measure import Measurement, measure
from bench.processes import end_on_sigterm
from bench.scenarios import SCENARIOS, Scenario
from bench.subjects import NAMES, USUAL, subjects


def main() -> None:
    """Measure and write."""
    end_on_sigterm()
    arguments = _arguments()
    head = machine.describe(["python", "-m", "bench", *map(shlex.quote, sys.argv[1:])])
    head |= {"load_before": machine.load_average()}
    settings = {name: json.loads(value) for name, _, value in (pair.partition("=") for pair in arguments.set)}
    scenarios = [_limited(one, arguments.streams) for one in SCENARIOS if one.name in arguments.scenario]
    measurements: list[Measurement] = []
    before = [] if arguments.not_kept else report.kept(page.FOLDER)
    with contextlib.ExitStack() as exits:
        those = list(subjects(arguments.subject, arguments.cache, settings, exits))
        for subject in those:
            measure(subject, Scenario("warm-up", num_prompt=64, max_tokens=8, streams=(2,)), 2, -1)
        for scenario in scenarios:
            for num_streams in scenario.streams:
                for number in range(arguments.rounds):
                    for subject in those:
                        measurements.append(measure(subject, scenario, num_streams, number))
                        print(_line(measurements[-1]), flush=True)
            if not arguments.not_kept:  # what comes next may fail
                report.write(page.FOLDER, report.merged(before, report.Run(head, measurements)))
    runs = report.merged(before, report.Run(head, measurements))
    tables = report.markdown(runs)
    print(tables)
    if not arguments.not_kept:
        page.embed("throughput", tables)
    if any(one.problems for one in measurements):
        sys.exit("some measurements have problems; their lines name them")


def _arguments() -> argparse.Namespace:
    parser = program.parser(__doc__)
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--scenario", nargs="+", choices=names, default=names)
    parser.add_argument("--subject", nargs="+", choices=NAMES, default=list(USUAL))
    parser.add_argument("--streams", nargs="+", type=int, help="only these numbers of streams")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=JSON", help="keys of chatsvc.toml")
    return parser.parse_args()


def _limited(scenario: Scenario, streams: Sequence[int] | None) -> Scenario:
    if not streams:
        return scenario
    chosen = tuple(number for number in scenario.streams if number in streams)
    return Scenario(scenario.name, scenario.num_prompt, scenario.max_tokens, chosen, scenario.num_turns)


def _line(one: Measurement) -> str:
    first = f"first token {one.first_s * 1000:7.0f} ms"
    return (
        f"{one.scenario:12} {one.subject:18} {one.num_streams:3} streams  {one.tokens_per_s:7.1f} tokens/s  {first}"
        f"{'  ' + '; '.join(one.problems) if one.problems else ''}"
    )


if __name__ == "__main__":
    main()
