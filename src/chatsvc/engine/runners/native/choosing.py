"""Choosing a token from logits, with numpy. A sequence's own generator, so that its seed alone decides."""

from __future__ import annotations

import secrets
from collections import Counter

import numpy as np

from chatsvc.engine.protocol import Sampling
from chatsvc.engine.runners.base import MAX_TOP_K
from chatsvc.engine.runners.native.library import Floats, Output

_SEED_MASK = (1 << 64) - 1


class Chooser:
    """How one sequence chooses; it remembers what it chose, for the penalties.

    Args:
        sampling: temperature, bounds, penalties, seed.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        is_greedy = sampling.temperature == 0
        self._top_k = 1 if is_greedy else min(sampling.top_k, MAX_TOP_K) if sampling.top_k > 0 else MAX_TOP_K
        self._is_penalised = bool(sampling.presence_penalty or sampling.frequency_penalty)
        self._counts: Counter[int] = Counter()
        seed = sampling.seed if sampling.seed is not None else secrets.randbits(64)
        self._generator = np.random.Generator(np.random.PCG64(seed & _SEED_MASK))

    def num_needed(self, num_before: int) -> int:
        """How many of the largest logits the choice behind ``num_before`` others depends on; 0: on all."""
        if min(self._sampling.presence_penalty, self._sampling.frequency_penalty) < 0:
            return 0
        # Every id that was chosen may fall behind the others.
        return self._top_k + (len(self._counts) + num_before if self._is_penalised else 0)

    def choose(self, output: Output) -> int:
        """The next id, from at least the :meth:`num_needed` largest logits."""
        ids, logits = output.ids, output.logits
        if self._is_penalised:
            logits = self._penalised(output)
            order = _largest(logits, self._top_k)
            ids, logits = ids[order], logits[order]
        place = 0 if self._top_k == 1 else self._draw(logits[: self._top_k].astype(np.float64))
        token = int(ids[place])
        self._counts[token] += 1
        return token

    def _draw(self, values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> int:
        """Where in the values, largest first: by their probabilities, of the fewest that make up top_p."""
        weights = np.exp((values - values[0]) / self._sampling.temperature)
        sums = np.cumsum(weights)
        num_kept = int(np.searchsorted(sums, self._sampling.top_p * sums[-1])) + 1
        kept = sums[: min(num_kept, len(sums))]
        return int(np.searchsorted(kept, self._generator.random() * kept[-1], side="right"))

    def _penalised(self, output: Output) -> Floats:
        chosen = np.fromiter(self._counts, dtype=np.int32)
        times = np.fromiter(self._counts.values(), dtype=np.float32)
        penalties = self._sampling.presence_penalty + self._sampling.frequency_penalty * times
        _, places, numbers = np.intersect1d(output.ids, chosen, assume_unique=True, return_indices=True)
        logits = output.logits.copy()
        logits[places] -= penalties[numbers]
        return logits


def _largest(logits: Floats, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Where the largest are, largest first; of equal ones the first first."""
    if len(logits) > 8 * count:  # sort only those that may be among them
        least = np.partition(logits, -count)[-count]
        places = np.flatnonzero(logits >= least)
        return places[np.argsort(-logits[places], kind="stable")][:count]
    return np.argsort(-logits, kind="stable")[:count]
