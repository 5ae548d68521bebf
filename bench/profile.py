"""``python -m bench.profile``: where a pass of the native runner spends its time, by phase.

Median passes: a token of so many sequences behind so long a context, the same where every logit is asked for (as by a
repetition penalty), and a prompt's chunk.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence

from bench import page, program
from bench.processes import end_on_sigterm
from bench.supply import Supply
from chatsvc.engine.runners.native.filling import fill
from chatsvc.engine.runners.native.library import PAGE_TOKENS, PHASES, Capacity, Model, Rows
from chatsvc.engine.runners.native.weights import open_weights

_CHUNK = 256
_CASES = ((1, 128), (8, 128), (16, 128), (16, 1000))
_PASSES = 31
_ALL = 0


def main() -> None:
    """Measure and write."""
    end_on_sigterm()
    parser = program.parser(__doc__)
    arguments = parser.parse_args()
    weights = open_weights(Supply(arguments.cache).hugging_face())
    num_pages = max(num * (context // PAGE_TOKENS + 1) for num, context in _CASES)
    model = Model(weights.shape, Capacity(2048, _CHUNK, num_pages, len(os.sched_getaffinity(0))))
    fill(model, weights)
    rows = [_decoding(model, *case) for case in _CASES]
    rows += [_decoding(model, *case, num_largest=_ALL) for case in _CASES]
    rows += [_prefilling(model)]
    table = _table(rows)
    print(table)
    if not arguments.not_kept:
        page.save("profile", {"rows": rows}, table)


def _decoding(model: Model, num_sequences: int, context: int, num_largest: int = 1) -> dict[str, object]:
    """One token each behind a context that has really been computed."""
    size = context // PAGE_TOKENS + 1
    sequences = [list(range(number * size, (number + 1) * size)) for number in range(num_sequences)]
    for number, pages in enumerate(sequences):
        for start in range(0, context, _CHUNK):
            ids = [5 + number + place for place in range(start, min(start + _CHUNK, context))]
            model.forward([Rows(ids, start, pages)], [])
    batch = [Rows([7 + number], context, pages) for number, pages in enumerate(sequences)]
    what = f"{num_sequences} x 1 token at {context}" + (", every logit" if num_largest == _ALL else "")
    return {"pass": what, **_median(model, batch, range(num_sequences), num_largest)}


def _prefilling(model: Model) -> dict[str, object]:
    chunk = Rows(list(range(_CHUNK)), 0, list(range(_CHUNK // PAGE_TOKENS)))
    return {"pass": f"{_CHUNK} tokens of a prompt", **_median(model, [chunk], [_CHUNK - 1], 1)}


def _median(model: Model, batch: Sequence[Rows], outputs: Sequence[int], num_largest: int) -> dict[str, float]:
    """Milliseconds of the whole pass and of each phase: medians over the passes."""
    samples: list[dict[str, float]] = []
    for _ in range(_PASSES):
        before, started = model.seconds(), time.perf_counter()
        model.forward_largest(batch, outputs, [num_largest] * len(outputs))
        whole, after = time.perf_counter() - started, model.seconds()
        samples.append({"all": whole, **{phase: after[phase] - before[phase] for phase in PHASES}})
    return {name: 1000 * statistics.median(sample[name] for sample in samples) for name in ("all", *PHASES)}


def _table(rows: Sequence[dict[str, object]]) -> str:
    names = ["all", *PHASES]
    lines = [f"| ms | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {row['pass']} | " + " | ".join(f"{row[name]:.1f}" for name in names) + " |" for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
