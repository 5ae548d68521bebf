"""``python -m bench``: chatsvc's whole stack beside its engine alone and llama.cpp's server, in one run.

Every server is up for the whole run and is measured in turn at each number of streams, so that what else the machine
does meets them all alike; a table shows medians over the rounds. Writes results.json and
the plots below docs/bench, and the tables of docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from bench import machine, page, report
from bench.inprocess import InProcess
from bench.load import Target
from bench.measure import EngineSubject, Measurement, ServerSubject, Subject, measure
from bench.processes import end_on_sigterm, free_port, running, wait_for
from bench.scenarios import SCENARIOS, Scenario
from bench.stack import StackOptions, stack
from bench.supply import MODEL_NAME, Supply, default_cache

_SUBJECTS = ("chatsvc", "engine", "llama.cpp-Q8_0", "llama.cpp-Q4_0")
_LLAMA_CONTEXT = 16 * 2048
_KEPT = Path("docs/bench")


def main() -> None:
    """Measure and write."""
    end_on_sigterm()
    arguments = _arguments()
    head = machine.describe(["python", "-m", "bench", *map(shlex.quote, sys.argv[1:])])
    head |= {"load_before": machine.load_average(), "weight_format": arguments.weight_format}
    scenarios = [_limited(one, arguments.streams) for one in SCENARIOS if one.name in arguments.scenario]
    measurements: list[Measurement] = []
    with contextlib.ExitStack() as exits:
        subjects = list(_subjects(arguments, exits))
        for subject in subjects:
            measure(subject, Scenario("warm-up", num_prompt=64, max_tokens=8, streams=(2,)), 2, -1)
        for scenario in scenarios:
            for num_streams in scenario.streams:
                for number in range(arguments.rounds):
                    for subject in subjects:
                        measurements.append(measure(subject, scenario, num_streams, number))
                        print(_line(measurements[-1]), flush=True)
                report.write(arguments.output, head, measurements)
    if arguments.output == _KEPT:
        page.embed("throughput", report.markdown(head, measurements))
    print(f"==> wrote {arguments.output}")
    if any(one.problems for one in measurements):
        sys.exit("some measurements have problems; they are in results.json")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.partition("\n")[0])
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--scenario", nargs="+", choices=names, default=names)
    parser.add_argument("--subject", nargs="+", choices=_SUBJECTS, default=list(_SUBJECTS))
    parser.add_argument("--streams", nargs="+", type=int, help="only these numbers of streams")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--weight-format", choices=["int8", "int4"], default="int8", help="of our model")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=JSON", help="keys of chatsvc.toml")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where models and llama.cpp are kept")
    parser.add_argument("--output", type=Path, default=_KEPT)
    return parser.parse_args()


def _limited(scenario: Scenario, streams: Sequence[int] | None) -> Scenario:
    if not streams:
        return scenario
    chosen = tuple(number for number in scenario.streams if number in streams)
    return Scenario(scenario.name, scenario.num_prompt, scenario.max_tokens, chosen, scenario.num_turns)


def _subjects(arguments: argparse.Namespace, exits: contextlib.ExitStack) -> Iterator[Subject]:
    supply = Supply(arguments.cache)
    home = arguments.cache / f"home-{arguments.weight_format}"
    if {"chatsvc", "engine"} & set(arguments.subject):
        settings = {name: json.loads(value) for name, _, value in (pair.partition("=") for pair in arguments.set)}
        model = supply.openvino(arguments.weight_format)
        target = exits.enter_context(stack(StackOptions(home, model, MODEL_NAME, settings)))
        if "chatsvc" in arguments.subject:
            yield ServerSubject(target)
    if "engine" in arguments.subject:
        tokenizer = Tokenizer.from_file(str(supply.hugging_face() / "tokenizer.json"))
        yield EngineSubject(exits.enter_context(InProcess(home, arguments.cache / "inprocess.log")), tokenizer)
    for name in arguments.subject:
        if name.startswith("llama.cpp-"):
            yield ServerSubject(exits.enter_context(_llama(supply, name)))


@contextlib.contextmanager
def _llama(supply: Supply, name: str) -> Iterator[Target]:
    """llama.cpp's server with its own defaults but for the slots; ``ignore_eos`` because the model is random."""
    port = free_port()
    weights = supply.gguf(name.removeprefix("llama.cpp-"))
    log = supply.cache / f"{name}.log"
    sizes = ["-np", "16", "-c", str(_LLAMA_CONTEXT), "-t", "2"]
    command = [supply.llama("llama-server"), "-m", weights, "--host", "127.0.0.1", "--port", str(port), *sizes]
    target = Target(name, "127.0.0.1", port, extra={"ignore_eos": True})
    with running(command, log) as process:
        wait_for(target, "/health", process, log)
        yield target


def _line(one: Measurement) -> str:
    first = f"first token {one.first_s * 1000:7.0f} ms"
    return (
        f"{one.scenario:12} {one.subject:18} {one.num_streams:3} streams  {one.tokens_per_s:7.1f} tokens/s  {first}"
        f"{'  ' + '; '.join(one.problems) if one.problems else ''}"
    )


if __name__ == "__main__":
    main()
