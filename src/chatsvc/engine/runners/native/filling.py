"""Packs a checkpoint's weights into a model, a block of rows at a time, so that little is held twice."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from chatsvc.engine.runners.native.checkpoint import Checkpoint
from chatsvc.engine.runners.native.library import Matrix, Model, Vector

_BLOCK_ROWS = 4096


def fill(model: Model, checkpoint: Checkpoint) -> None:
    """All matrices and vectors."""
    shape = checkpoint.shape
    for matrix, layer in _matrices(checkpoint):
        number, rows = checkpoint.matrix(matrix, layer)
        for first in range(0, len(rows), _BLOCK_ROWS):
            model.set_rows(matrix, layer, first, number, np.ascontiguousarray(rows[first : first + _BLOCK_ROWS]))
    model.set_vector(Vector.FINAL_NORM, 0, checkpoint.vector(Vector.FINAL_NORM, 0))
    for layer in range(shape.num_layers):
        for vector in (Vector.ATTENTION_NORM, Vector.MLP_NORM, *((Vector.BIAS,) if shape.has_bias else ())):
            model.set_vector(vector, layer, checkpoint.vector(vector, layer))


def _matrices(checkpoint: Checkpoint) -> Iterator[tuple[Matrix, int]]:
    yield Matrix.EMBEDDING, 0
    if not checkpoint.shape.is_tied:
        yield Matrix.HEAD, 0
    for layer in range(checkpoint.shape.num_layers):
        for matrix in Matrix:
            if matrix >= Matrix.QUERY:
                yield matrix, layer
