"""Run with a sanitised build of the native library: ``python -m tests.engine.sanitized LIBRARY FILE…``.

Loads each weight file and computes passes with it: chunks, decoding, all logits and the largest, one thread and two,
and rows that are not finite. The sanitisers end the process at the first error.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from chatsvc.engine.runners.native import library
from chatsvc.engine.runners.native.filling import fill
from chatsvc.engine.runners.native.library import Capacity, Model, Rows, Vector
from chatsvc.engine.runners.native.weights import open_weights


def main(compiled: str, *paths: str) -> None:
    """Exercise everything that Python calls."""
    library._PATH = Path(compiled)
    for path in map(Path, paths):
        weights = open_weights(path)
        for num_threads in (1, 2):
            model = Model(weights.shape, Capacity(max_tokens=96, max_rows=70, num_pages=6, num_threads=num_threads))
            fill(model, weights)
            _compute(model)
            model.set_vector(Vector.MLP_NORM, 0, np.full(weights.shape.hidden_size, np.nan, np.float32))
            assert not model.forward_largest([Rows([1], 0, [0])], [0], [1])[0].is_finite
    print("done")


def _compute(model: Model) -> None:
    model.touch(5)
    chunk = Rows(list(range(3, 43)), 0, [0, 1])
    assert np.isfinite(model.forward([chunk, Rows([9], 0, [3])], [0, 39, 40])).all()
    model.copy_page(0, 4)
    decoding = [Rows([7], 40, [4, 1, 2]), *(Rows([5 + number], 1, [3]) for number in range(17))]
    for count in (1, 16, 40, 0):  # by candidate panels, then all
        for rows in (decoding[:1], decoding[:4], decoding):
            outputs = model.forward_largest(rows, range(len(rows)), [count] * len(rows))
            assert all(output.is_finite for output in outputs)
            num_ids = len(model.forward(rows, [0])[0])
            masks = [None, np.zeros(1, np.uint32), np.full(-(-num_ids // 32), 0x80000001, np.uint32)] * len(rows)
            model.forward_largest(rows, range(len(rows)), [count] * len(rows), masks[: len(rows)])
    model.forward([Rows([3, 4, 5], 1, [3])], [])
    model.clear_cache()
    assert len(library.largest(np.arange(50, dtype=np.float32), 7)) == 7
    assert model.seconds()["attention"] > 0


if __name__ == "__main__":
    main(*sys.argv[1:])
