"""Packs weight files into a model, a block of rows at a time, so that little is held twice.

Every tensor is checked against the model's shape before C gets it, because C does not check.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from chatsvc.engine.runners.native.balancing import BalancedWeights
from chatsvc.engine.runners.native.library import Matrix, Model, Number, Shape, Vector
from chatsvc.engine.runners.native.weights import Tensor, Weights, unpacked
from chatsvc.errors import OperatorError

_BLOCK_ROWS = 4096
# Kinds that C reads as stored.
_READ_AS_STORED = {"F32": Number.FLOAT32, "F16": Number.FLOAT16, "BF16": Number.BFLOAT16, "Q8_0": Number.Q8_0}


def fill(model: Model, weights: Weights) -> None:
    """Pack all matrices and vectors.

    Raises:
        OperatorError: a tensor is missing or does not fit the model's shape.
    """
    try:
        _fill(model, weights)
    except KeyError as error:
        raise OperatorError(f"The model lacks the tensor {error}; import another copy of it.") from error
    except ValueError as error:
        raise OperatorError(f"The model's tensors are damaged ({error}); import another copy of it.") from error


def _fill(model: Model, weights: Weights) -> None:
    _check_sizes(weights)
    balanced, shape = BalancedWeights(weights), weights.shape
    for matrix, layer in _matrices(shape):
        tensor = balanced.matrix(matrix, layer)
        for first in range(0, len(tensor.rows), _BLOCK_ROWS):
            model.set_rows(matrix, layer, first, *_block(tensor, first))
    for vector, layer in _vectors(shape):
        model.set_vector(vector, layer, balanced.vector(vector, layer))
        if vector is Vector.BIAS:
            model.set_vector(Vector.MEAN_KEY_BIAS, layer, balanced.vector(Vector.MEAN_KEY_BIAS, layer))


def _check_sizes(weights: Weights) -> None:
    shape = weights.shape
    sizes = _matrix_sizes(shape)
    for matrix, layer in _matrices(shape):
        tensor = weights.matrix(matrix, layer)
        num_numbers, num_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[tensor.kind]]
        depth = tensor.rows.shape[1] * num_numbers / num_bytes
        _check((len(tensor.rows), depth) == sizes[matrix], matrix.name, layer)
    for vector, layer in _vectors(shape):
        _check(len(weights.vector(vector, layer)) == _vector_size(vector, shape), vector.name, layer)


def _block(tensor: Tensor, first: int) -> tuple[Number, NDArray[np.generic]]:
    """A block of rows for C; kinds that C does not read are unpacked to float32."""
    rows = np.ascontiguousarray(tensor.rows[first : first + _BLOCK_ROWS])
    if tensor.kind in _READ_AS_STORED:
        return _READ_AS_STORED[tensor.kind], rows
    return Number.FLOAT32, np.ascontiguousarray(unpacked(Tensor(tensor.kind, rows)))


def _check(is_right: bool, name: str, layer: int) -> None:  # noqa: FBT001 - it is the condition itself
    if not is_right:
        raise OperatorError(
            f"The tensor {name} of layer {layer} is not of the size that the model says; import another copy of it."
        )


def _matrix_sizes(shape: Shape) -> Mapping[Matrix, tuple[int, int]]:
    """(rows, numbers of a row) of each matrix."""
    num_queries, num_keys = shape.num_heads * shape.head_size, shape.num_kv_heads * shape.head_size
    return {
        Matrix.EMBEDDING: (shape.vocabulary_size, shape.hidden_size),
        Matrix.HEAD: (shape.vocabulary_size, shape.hidden_size),
        Matrix.QUERY: (num_queries, shape.hidden_size),
        Matrix.KEY: (num_keys, shape.hidden_size),
        Matrix.VALUE: (num_keys, shape.hidden_size),
        Matrix.OUTPUT: (shape.hidden_size, num_queries),
        Matrix.GATE: (shape.intermediate_size, shape.hidden_size),
        Matrix.UP: (shape.intermediate_size, shape.hidden_size),
        Matrix.DOWN: (shape.hidden_size, shape.intermediate_size),
    }


def _vector_size(vector: Vector, shape: Shape) -> int:
    if vector is Vector.BIAS:
        return (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_size
    return shape.head_size if vector in (Vector.QUERY_NORM, Vector.KEY_NORM) else shape.hidden_size


def _matrices(shape: Shape) -> Iterator[tuple[Matrix, int]]:
    yield Matrix.EMBEDDING, 0
    if not shape.is_tied:
        yield Matrix.HEAD, 0
    for layer in range(shape.num_layers):
        for matrix in Matrix:
            if matrix >= Matrix.QUERY:
                yield matrix, layer


def _vectors(shape: Shape) -> Iterator[tuple[Vector, int]]:
    yield Vector.FINAL_NORM, 0
    for layer in range(shape.num_layers):
        yield from ((vector, layer) for vector in (Vector.ATTENTION_NORM, Vector.MLP_NORM))
        if shape.has_bias:
            yield Vector.BIAS, layer
        if shape.has_qk_norm:
            yield from ((vector, layer) for vector in (Vector.QUERY_NORM, Vector.KEY_NORM))
