"""``python -m bench.rounding``: what each rounding of the native runner costs alone, simulated in torch.

The simulation computes in float32 and rounds where csrc does: weights and inputs in rotated groups of 64, queries and
keys a head at a time, values, probabilities a tile at a time. The divergence (Kullback-Leibler, mean over all
positions) says more than agreement and perplexity, which move by chance where two tokens are nearly as probable.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from bench import page, program
from bench.processes import end_on_sigterm
from bench.supply import Supply
from chatsvc.cli.models.bench import manual
from chatsvc.engine.runners import quality
from chatsvc.engine.runners.native.balancing import BalancedWeights
from chatsvc.engine.runners.native.library import GROUP, Matrix, Shape, Vector
from chatsvc.engine.runners.native.weights import Weights, open_weights, unpacked
from chatsvc.models.supply import known

_WINDOW = 528
_TILE = 16
_INPUTS = {Matrix.QUERY: "q, k, v", Matrix.OUTPUT: "attention output", Matrix.GATE: "gate, up", Matrix.DOWN: "down"}
_KINDS = (
    *("weights", *(f"input of {name}" for name in _INPUTS.values()), "input of the vocabulary"),
    *("queries", "keys", "values", "probabilities"),
)


@dataclass(frozen=True, slots=True)
class Cost:
    """Of some roundings, against none."""

    rounded: str
    divergence: float
    agreement: float
    perplexity: float


def main() -> None:
    """Measure and write."""
    end_on_sigterm()
    parser = program.parser(__doc__)
    parser.add_argument(
        "--model", choices=known.MODELS, default=known.EMBEDDED.name, help="the embedded one by default"
    )
    parser.add_argument("--tokens", type=int, default=2 * _WINDOW)
    arguments = parser.parse_args()
    served, _ = Supply(arguments.cache).known(known.MODELS[arguments.model])
    ids = Tokenizer.from_str(served.card().tokenizer_json.decode()).encode(manual(), add_special_tokens=False).ids
    windows = quality.windows_of(ids[: arguments.tokens], _WINDOW)
    rows = []
    for cost in _costs(open_weights(served.path / "model.gguf"), windows):
        rows.append(asdict(cost))
        print(cost, flush=True)
    if not arguments.not_kept:
        page.save(f"rounding-{arguments.model}", {"rows": rows}, _table(rows))


def _costs(weights: Weights, windows: Sequence[Sequence[int]]) -> Iterator[Cost]:
    plain, balanced = Simulation(weights), Simulation(BalancedWeights(weights))
    truth = [plain.log_probs(window, frozenset()).half() for window in windows]
    for kind in _KINDS:
        yield _cost(f"{kind} alone", truth, windows, plain, {kind})
    yield _cost("keys alone, balanced", truth, windows, balanced, {"keys"})
    yield _cost("all, without balancing", truth, windows, plain, set(_KINDS))
    yield _cost("all, as served", truth, windows, balanced, set(_KINDS))


def _cost(
    title: str, truth: Sequence[Tensor], windows: Sequence[Sequence[int]], simulation: Simulation, rounded: set[str]
) -> Cost:
    divergence, equal, lost, total = 0.0, 0, 0.0, 0
    for window, reference in zip(windows, truth, strict=True):
        found, right = simulation.log_probs(window, frozenset(rounded)), torch.tensor(window[1:])[:, None]
        for start in range(0, len(found), _TILE):
            ours, theirs = found[start : start + _TILE], reference[start : start + _TILE].float()
            divergence += float((theirs.exp() * (theirs - ours)).sum())
            equal += int((ours.argmax(1) == theirs.argmax(1)).sum())
            lost += float((theirs - ours).gather(1, right[start : start + _TILE]).sum())
        total += len(found)
    return Cost(title, divergence / total, equal / total, math.expm1(lost / total))


def _table(rows: Sequence[dict[str, object]]) -> str:
    lines = ["| rounded | divergence from fp32, nats | top-1 agreement | perplexity |", "|---|---|---|---|"]
    lines += [
        f"| {row['rounded']} | {row['divergence']:.5f} | {row['agreement']:.3f} | {row['perplexity']:+.2%} |"
        for row in rows
    ]
    return "\n".join(lines)


def rotated(x: Tensor, size: int) -> Tensor:
    """The Walsh-Hadamard transform of every ``size`` numbers, its own inverse."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return (x.unflatten(-1, (-1, size)) @ (matrix / math.sqrt(size))).flatten(-2)


def rounded(x: Tensor, size: int, steps: int = 127) -> Tensor:
    """Every ``size`` numbers rounded to so many steps of their largest magnitude."""
    groups = x.unflatten(-1, (-1, size))
    scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-30) / steps
    return ((groups / scale).round() * scale).flatten(-2)


def rounded_in_rotation(x: Tensor, size: int = GROUP) -> Tensor:
    """Rotated, rounded and rotated back."""
    return rotated(rounded(rotated(x, size), size), size)


class Simulation:
    """A forward pass in float32 whose numbers are rounded where that is asked for."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._shape: Shape = weights.shape
        self._mean_biases = isinstance(weights, BalancedWeights) and weights.shape.has_bias
        self._rounded_matrices: dict[tuple[Matrix, int], Tensor] = {}

    @torch.inference_mode()
    def log_probs(self, window: Sequence[int], kinds: frozenset[str]) -> Tensor:
        """Behind every token of a window but the last, (tokens - 1, vocabulary)."""
        x = self._matrix(Matrix.EMBEDDING, 0, kinds)[torch.tensor(window)]
        for layer in range(self._shape.num_layers):
            x = x + self._attention(self._norm(x, Vector.ATTENTION_NORM, layer), layer, kinds)
            x = x + self._mlp(self._norm(x, Vector.MLP_NORM, layer), layer, kinds)
        x = self._norm(x, Vector.FINAL_NORM, 0)[:-1]
        x = rounded_in_rotation(x) if "input of the vocabulary" in kinds else x
        head = Matrix.EMBEDDING if self._shape.is_tied else Matrix.HEAD
        return torch.log_softmax(x @ self._matrix(head, 0, kinds).T, -1)

    def _attention(self, x: Tensor, layer: int, kinds: frozenset[str]) -> Tensor:
        size, num_kv_heads = self._shape.head_size, self._shape.num_kv_heads
        joined = torch.cat(
            [self._product(x, which, layer, kinds) for which in (Matrix.QUERY, Matrix.KEY, Matrix.VALUE)], 1
        )
        if self._shape.has_bias:
            joined = joined + self._vector(Vector.BIAS, layer)
        sizes = [self._shape.num_heads * size, num_kv_heads * size, num_kv_heads * size]
        queries, keys, values = (part.unflatten(1, (-1, size)).transpose(0, 1) for part in joined.split(sizes, 1))
        queries, keys = self._rope(queries), self._rope(keys)
        if self._mean_biases:
            keys = keys - self._vector(Vector.MEAN_KEY_BIAS, layer).view(num_kv_heads, 1, size)
        queries = rounded_in_rotation(queries, size) if "queries" in kinds else queries
        keys = rounded_in_rotation(keys, size) if "keys" in kinds else keys
        steps = values.abs().amax(-1)
        values = rounded(values, size) if "values" in kinds else values
        share = self._shape.num_heads // num_kv_heads
        keys, values, steps = (part.repeat_interleave(share, 0) for part in (keys, values, steps))
        scores = queries @ keys.transpose(1, 2) / math.sqrt(size) + torch.full((len(x), len(x)), -math.inf).triu(1)
        probabilities = scores.softmax(-1)
        if "probabilities" in kinds:  # a tile's, times the values' scales
            padding = (0, -len(x) % _TILE)
            weighted = rounded(torch.nn.functional.pad(probabilities * steps[:, None], padding), _TILE, steps=255)
            probabilities = weighted[..., : len(x)] / steps[:, None]
        return self._product((probabilities @ values).transpose(0, 1).flatten(1), Matrix.OUTPUT, layer, kinds)

    def _mlp(self, x: Tensor, layer: int, kinds: frozenset[str]) -> Tensor:
        gate, up = (self._product(x, which, layer, kinds) for which in (Matrix.GATE, Matrix.UP))
        return self._product(torch.nn.functional.silu(gate) * up, Matrix.DOWN, layer, kinds)

    def _product(self, x: Tensor, which: Matrix, layer: int, kinds: frozenset[str]) -> Tensor:
        first = {Matrix.KEY: Matrix.QUERY, Matrix.VALUE: Matrix.QUERY, Matrix.UP: Matrix.GATE}.get(which, which)
        x = rounded_in_rotation(x) if f"input of {_INPUTS[first]}" in kinds else x
        return x @ self._matrix(which, layer, kinds).T

    def _matrix(self, which: Matrix, layer: int, kinds: frozenset[str]) -> Tensor:
        if "weights" not in kinds:
            return self._unpacked(which, layer)
        if (which, layer) not in self._rounded_matrices:
            self._rounded_matrices[which, layer] = rounded_in_rotation(self._unpacked(which, layer))
        return self._rounded_matrices[which, layer]

    def _unpacked(self, which: Matrix, layer: int) -> Tensor:
        matrix = torch.from_numpy(unpacked(self._weights.matrix(which, layer)).copy())
        if self._shape.is_interleaved and which in (Matrix.QUERY, Matrix.KEY):
            return matrix.unflatten(0, (-1, self._shape.head_size // 2, 2)).transpose(1, 2).flatten(0, 2)
        return matrix

    def _vector(self, which: Vector, layer: int) -> Tensor:
        return torch.from_numpy(self._weights.vector(which, layer).copy())

    def _norm(self, x: Tensor, which: Vector, layer: int) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self._shape.epsilon) * self._vector(which, layer)

    def _rope(self, x: Tensor) -> Tensor:
        """(heads, tokens, head size)."""
        angles = torch.outer(torch.arange(x.shape[1]).double(), torch.tensor(self._shape.rope_frequencies).double())
        cosines, sines = (function(angles).float() * self._shape.rope_factor for function in (torch.cos, torch.sin))
        one, other = x.chunk(2, -1)
        return torch.cat([one * cosines - other * sines, other * cosines + one * sines], -1)


if __name__ == "__main__":
    main()
