"""``python -m bench.masks``: what it costs to hold 16 sequences to a JSON Schema.

The native runner in this process, without drafts. Bursts with and without a schema alternate, so that both see the same
machine. The embedded model has a real tokenizer; the random model in Qwen1.5-0.5B-Chat's shape has a vocabulary of
151,936 tokens.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import page, program
from bench.processes import end_on_sigterm
from bench.supply import Supply
from chatsvc.engine.protocol import Grammar, Sampling
from chatsvc.engine.runners.base import Runner, RunnerOptions
from chatsvc.engine.runners.choice import load_runner
from chatsvc.engine.runners.grammars import Grammars
from chatsvc.models.store import ModelFolder, ModelStore
from chatsvc.models.supply import known

_NUM_STREAMS = 16
_NUM_PROMPT = 64
_NUM_TOKENS = 128
_GOAL = 0.95
# Long enough that no answer ends before its last token is generated, and with few texts that are forced.
_LINE = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 8, "maxLength": 40},
        "kind": {"enum": ["book", "tool", "other"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 10_000},
        "note": {"type": "string", "minLength": 8},
    },
    "required": ["name", "kind", "count", "note"],
    "additionalProperties": False,
}
_SCHEMA = Grammar("json_schema", json.dumps({"type": "array", "items": _LINE, "minItems": 40}))


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens a second of all sequences together, one number a burst, in the order of measurement."""

    model: str
    free: list[float]
    masked: list[float]

    @property
    def ratio(self) -> float:
        """Masked to free, medians."""
        return statistics.median(self.masked) / statistics.median(self.free)


def measure(model: ModelFolder, rounds: int) -> Row:
    """Load the model, warm up, and alternate."""
    card = model.card()
    with model.weights() as path:
        options = RunnerOptions(kind="native", max_num_seqs=_NUM_STREAMS, max_draft_tokens=0)
        runner = load_runner(path, model.format, card, options)
        runner.warm_up()
    grammars = Grammars(card)
    speeds: dict[bool, list[float]] = {False: [], True: []}
    for number in range(-1, rounds):  # the first of each is not counted
        for masked in (False, True):
            speed = _burst(runner, grammars if masked else None, seed=number)
            if number >= 0:
                speeds[masked].append(speed)
    grammars.close()
    return Row(model.name, speeds[False], speeds[True])


def _burst(runner: Runner, grammars: Grammars | None, seed: int) -> float:
    for one in range(_NUM_STREAMS):
        prompt = [(seed * 1009 + one * 31 + place * 7) % 20_000 + 300 for place in range(_NUM_PROMPT)]
        sampling = Sampling(
            max_tokens=_NUM_TOKENS,
            temperature=0.8,
            seed=one,
            grammar=_SCHEMA if grammars else None,
            ignore_eos=not grammars,
        )
        constraint = grammars.compile(_SCHEMA).result() if grammars else None
        runner.add(one, prompt, sampling, f"bench-{one}", 0, constraint)
    num_generated, num_running = 0, _NUM_STREAMS
    started = time.perf_counter()
    while num_running:
        for output in runner.step():
            num_generated += output.num_generated
            if output.finish_reason is not None:
                if output.finish_reason != "length":
                    raise RuntimeError(f"a sequence ended early: {output.finish_reason} {output.detail}")
                num_running -= 1
    return num_generated / (time.perf_counter() - started)


def _shaped(cache: Path) -> ModelFolder:
    store = ModelStore(cache / "home-masks" / "models", cache / "home-masks" / "keys")
    found = [folder for folder in store.list() if folder.name == "shaped"]
    return found[0] if found else store.import_path(Supply(cache).hugging_face(), "shaped")


def main() -> None:
    """Measure, print, keep; exit code 1 where the goal is missed."""
    end_on_sigterm()
    parser = program.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    served, _ = Supply(arguments.cache).known(known.EMBEDDED)
    rows = []
    for model in (served, _shaped(arguments.cache)):
        rows.append(measure(model, arguments.rounds))
        print(rows[-1], rows[-1].ratio, flush=True)
    if not arguments.not_kept:
        page.save("masks", {"rows": [asdict(row) for row in rows]}, table(rows))
    sys.exit(any(row.ratio < _GOAL for row in rows))


def table(rows: list[Row]) -> str:
    """Markdown, a row a model."""
    lines = ["| model | free, tokens/s | with a schema, tokens/s | ratio |", "|---|---|---|---|"]
    for row in rows:
        missed = " (missed)" if row.ratio < _GOAL else ""
        free, masked = statistics.median(row.free), statistics.median(row.masked)
        lines.append(f"| {row.model} | {free:.0f} | {masked:.0f} | {row.ratio:.2f}{missed} |")
    about = f"{_NUM_STREAMS} sequences, {_NUM_PROMPT} tokens in, {_NUM_TOKENS} out, medians of {len(rows[0].free)}."
    return "\n".join([*lines, "", f"{about} Goal: at least {_GOAL}."])


if __name__ == "__main__":
    main()
