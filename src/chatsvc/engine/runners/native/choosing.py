"""Choosing a token from logits, with numpy. A sequence's own generator, so that its seed alone decides."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable

import numpy as np

from chatsvc.engine.protocol import Sampling
from chatsvc.engine.runners.base import MAX_TOP_K
from chatsvc.engine.runners.native.library import Floats, Ids

Largest = Callable[[Floats, int], Ids]
_SEED_MASK = (1 << 64) - 1


class Chooser:
    """How one sequence chooses; it remembers what it chose, for the penalties.

    Args:
        sampling: temperature, bounds, penalties, seed.
        largest: the ids of the largest logits, largest first.
    """

    def __init__(self, sampling: Sampling, largest: Largest) -> None:
        self._sampling = sampling
        self._largest = largest
        self._counts: Counter[int] = Counter()
        seed = sampling.seed if sampling.seed is not None else secrets.randbits(64)
        self._generator = np.random.Generator(np.random.PCG64(seed & _SEED_MASK))

    def choose(self, logits: Floats) -> int:
        """The next id; ``logits`` are ours to change."""
        sampling = self._sampling
        self._penalise(logits)
        if sampling.temperature == 0 or sampling.top_k == 1:
            token = int(self._largest(logits, 1)[0])
        else:
            ids = self._largest(logits, min(sampling.top_k, MAX_TOP_K) if sampling.top_k > 0 else MAX_TOP_K)
            token = int(ids[self._draw(logits[ids].astype(np.float64))])
        self._counts[token] += 1
        return token

    def _draw(self, values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> int:
        """Where in the values, largest first: by their probabilities, of the fewest that make up top_p."""
        weights = np.exp((values - values[0]) / self._sampling.temperature)
        sums = np.cumsum(weights)
        num_kept = int(np.searchsorted(sums, self._sampling.top_p * sums[-1])) + 1
        kept = sums[: min(num_kept, len(sums))]
        return int(np.searchsorted(kept, self._generator.random() * kept[-1], side="right"))

    def _penalise(self, logits: Floats) -> None:
        sampling = self._sampling
        if self._counts and (sampling.presence_penalty or sampling.frequency_penalty):
            ids = np.fromiter(self._counts, dtype=np.int64)
            times = np.fromiter(self._counts.values(), dtype=np.float32)
            logits[ids] -= sampling.presence_penalty + sampling.frequency_penalty * times
