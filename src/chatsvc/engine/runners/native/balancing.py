"""Weights with queries and keys balanced, so that the cache's keys lose little when they are rounded to bytes.

The error that rounding adds to a score grows with the length of the key times the length of the query. Two changes
shorten them and leave the attention of every token as it is:

1. Each pair of numbers of a KV head's keys is multiplied by a factor, and that of its queries divided by it, so their
   product stays. The factor is the square root of the ratio of their magnitudes: a pair that is large in one and small
   in the other becomes medium in both.
2. Qwen2's key biases are up to forty times as large as the rest of a key, mostly in the pairs that the rotary embedding
   turns slowest. Their mean over the first positions, rotated as keys are, is subtracted from every key: all scores of
   a query change by the same amount, which softmax does not see. A fast pair's mean is almost 0, so its keys stay.

Where an RMSNorm of each head follows the matrices (Qwen3), the factors go into its weights, which all heads share.

Magnitudes are estimated from the weights alone, as if the numbers of a normalised input were uncorrelated. See ADR 15.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatsvc.engine.runners.native.library import Matrix, Shape, Vector
from chatsvc.engine.runners.native.weights import Tensor, Weights, unpacked

_MEAN_TOKENS = 2048  # a usual context; the mean over more positions is further from the keys of most texts
_LEAST = 1e-6  # of a magnitude: a row of zeros is not scaled to infinity

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Balance:
    """Of a layer: factors of the rows of the query and key matrices, or of their norms' weights; the mean key bias.

    ``mean_key_bias`` is the mean of the scaled, rotated key biases.
    """

    query_factors: Floats
    key_factors: Floats
    mean_key_bias: Floats


class BalancedWeights:
    """Weights of another source, all of the right sizes, balanced."""

    def __init__(self, weights: Weights) -> None:
        self.shape = weights.shape
        self.max_tokens = weights.max_tokens
        self._weights = weights
        self._balances: dict[int, _Balance] = {}

    def matrix(self, matrix: Matrix, layer: int) -> Tensor:
        """See :class:`Weights`."""
        tensor = self._weights.matrix(matrix, layer)
        if matrix not in (Matrix.QUERY, Matrix.KEY) or self.shape.has_qk_norm:
            return tensor
        balance = self._balance(layer)
        factors = balance.query_factors if matrix is Matrix.QUERY else balance.key_factors
        scaled = unpacked(tensor) * factors[:, np.newaxis]
        return Tensor("F32", scaled.view(np.uint8))

    def vector(self, vector: Vector, layer: int) -> Floats:
        """See :class:`Weights`; also the vector that only balanced weights have."""
        if vector is Vector.MEAN_KEY_BIAS:
            return self._balance(layer).mean_key_bias
        numbers = self._weights.vector(vector, layer)
        if vector is Vector.QUERY_NORM:
            return numbers * self._balance(layer).query_factors
        if vector is Vector.KEY_NORM:
            return numbers * self._balance(layer).key_factors
        if vector is Vector.BIAS and not self.shape.has_qk_norm:
            balance = self._balance(layer)
            factors = np.concatenate([balance.query_factors, balance.key_factors])
            return np.concatenate([numbers[: len(factors)] * factors, numbers[len(factors) :]])
        return numbers

    def _balance(self, layer: int) -> _Balance:
        if layer not in self._balances:
            self._balances[layer] = _balance(self._weights, layer)
        return self._balances[layer]


def _balance(weights: Weights, layer: int) -> _Balance:
    shape = weights.shape
    if shape.has_qk_norm:
        return _balance_of_norms(weights, layer)
    norm = weights.vector(Vector.ATTENTION_NORM, layer)
    queries, keys = (_energies(weights.matrix(which, layer), norm) for which in (Matrix.QUERY, Matrix.KEY))
    biases = weights.vector(Vector.BIAS, layer) if shape.has_bias else np.zeros(len(queries) + len(keys), np.float32)
    key_biases = _pairs(biases[len(queries) :][: len(keys)], shape)
    cosines, sines = _mean_rotation(shape, layer)
    left = 1 - cosines**2 - sines**2  # of the squared length of a rotated bias, without its mean
    key_energies = _pairs(keys, shape).sum(-1) + left * (key_biases**2).sum(-1)
    query_energies = _pairs(queries + biases[: len(queries)] ** 2, shape).sum(-1)
    query_energies = query_energies.reshape(shape.num_kv_heads, -1, shape.head_size // 2).mean(1)
    key_factors = _key_factors(query_energies, key_energies)
    query_factors = np.repeat(1 / key_factors, shape.num_heads // shape.num_kv_heads, axis=0)
    x, y = np.moveaxis(key_biases * key_factors, -1, 0)
    factor = 1.0 if layer in shape.layers_without_rope else shape.rope_factor
    mean = np.concatenate([x * cosines - y * sines, y * cosines + x * sines], axis=1) * factor
    return _Balance(_rows(query_factors, shape), _rows(key_factors, shape), mean.astype(np.float32).reshape(-1))


def _balance_of_norms(weights: Weights, layer: int) -> _Balance:
    """A normalised head's magnitudes are those of the norm's weights; there is no constant part to subtract."""
    shape = weights.shape
    norms = (weights.vector(vector, layer) for vector in (Vector.QUERY_NORM, Vector.KEY_NORM))
    key_factors = _key_factors(*(_pairs(norm**2, shape).sum(-1) for norm in norms))
    no_mean = np.zeros(shape.num_kv_heads * shape.head_size, np.float32)
    return _Balance(_rows(1 / key_factors, shape), _rows(key_factors, shape), no_mean)


def _key_factors(query_energies: Floats, key_energies: Floats) -> NDArray[np.floating[Any]]:
    """The factor of each number of a key, (heads, pairs of a head, 2), from energies (heads, pairs of a head)."""
    factors = ((query_energies + _LEAST) / (key_energies + _LEAST)) ** 0.25
    factors /= np.exp(np.log(factors).mean(-1, keepdims=True))
    return np.repeat(factors[:, :, np.newaxis], 2, axis=2)


def _energies(tensor: Tensor, norm: Floats) -> Floats:
    """The expected square of each output, of inputs that have length 1 a number before the norm's weight."""
    energies: Floats = ((unpacked(tensor) * norm) ** 2).sum(-1)
    return energies


def _mean_rotation(shape: Shape, layer: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean cosine and sine of each pair over the first positions, as keys of the layer are rotated."""
    if layer in shape.layers_without_rope:
        return np.ones(shape.head_size // 2), np.zeros(shape.head_size // 2)
    angles = np.outer(np.arange(_MEAN_TOKENS), np.asarray(shape.rope_frequencies, dtype=np.float64))
    return np.cos(angles).mean(0), np.sin(angles).mean(0)


def _pairs(rows: Floats, shape: Shape) -> Floats:
    """A number for each row of a query or key matrix, (heads, pairs of a head, 2)."""
    if shape.is_interleaved:
        return rows.reshape(-1, shape.head_size // 2, 2)
    return rows.reshape(-1, 2, shape.head_size // 2).swapaxes(1, 2)


def _rows(pairs: NDArray[np.floating[Any]], shape: Shape) -> Floats:
    """The inverse of :func:`_pairs`."""
    return (pairs if shape.is_interleaved else pairs.swapaxes(1, 2)).astype(np.float32).reshape(-1)
