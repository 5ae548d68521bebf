"""Choosing a token from logits, with numpy. A sequence's own generator, so that its seed alone decides."""

from __future__ import annotations

import math
import secrets
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chatsvc.engine.protocol import Sampling, TokenLogprobs
from chatsvc.engine.runners.base import MAX_TOP_K, NotFinite
from chatsvc.engine.runners.masks import Mask, is_allowed
from chatsvc.engine.runners.native.library import Floats, Ids, Output, largest

_SEED_MASK = (1 << 64) - 1


class Chosen(NamedTuple):
    """A token, and its log-probability with its alternatives' if they were asked for."""

    token: int
    logprobs: TokenLogprobs | None


class Chooser:
    """How one sequence chooses; it remembers what it chose, for the penalties.

    Args:
        sampling: temperature, bounds, penalties, seed.
        prompt_ids: what the repetition penalty counts from the beginning.
        eos: ids that may not be chosen before ``min_tokens``.
    """

    def __init__(self, sampling: Sampling, prompt_ids: Sequence[int] = (), eos: Collection[int] = ()) -> None:
        self._sampling = sampling
        is_greedy = sampling.temperature == 0
        self._top_k = 1 if is_greedy else min(sampling.top_k, MAX_TOP_K) if sampling.top_k > 0 else MAX_TOP_K
        self._eos = np.array(sorted(eos), dtype=np.int32)
        self._biased = np.fromiter(sampling.logit_bias, dtype=np.int32)
        self._biases = np.fromiter(sampling.logit_bias.values(), dtype=np.float32)
        self._seen = _Seen(sampling, prompt_ids) if _is_penalised(sampling) else None
        self._num_chosen = 0
        seed = sampling.seed if sampling.seed is not None else secrets.randbits(64)
        self._generator = np.random.Generator(np.random.PCG64(seed & _SEED_MASK))

    def num_needed(self, num_before: int) -> int:
        """How many of the largest logits the choice behind ``num_before`` others depends on; 0: on all."""
        return 0 if self._is_changing(num_before) or self._sampling.num_logprobs is not None else self._top_k

    def choose(self, output: Output) -> Chosen:
        """The next token, from at least the :meth:`num_needed` largest logits.

        Raises:
            NotFinite: the logits are not numbers that can be compared.
        """
        if not output.is_finite:
            raise NotFinite
        ids, logits = output.ids, output.logits
        if self._is_changing(0) or (output.mask is not None and self._sampling.num_logprobs is not None):
            changed = self._changed(logits, output.mask)
            ids = largest(changed, self._top_k)
            logits = changed[ids]
        elif len(logits) > self._top_k and self._sampling.num_logprobs is not None:
            ids = largest(logits, self._top_k)
            logits = logits[ids]
        logits = logits[: self._top_k]
        if not math.isfinite(logits[0]):  # every token is forbidden
            raise NotFinite
        if output.mask is not None:
            logits = logits[np.isfinite(logits)]
        place = 0 if self._top_k == 1 else self._draw(logits.astype(np.float64))
        token = int(ids[place])
        self._num_chosen += 1
        if self._seen is not None:
            self._seen.add(token)
        return Chosen(token, self._logprobs(token, output.logits))

    def _is_changing(self, num_before: int) -> bool:
        """Whether logits are changed before one is chosen behind ``num_before`` others."""
        is_held_open = self._num_chosen + num_before < self._sampling.min_tokens
        return self._seen is not None or len(self._biased) > 0 or is_held_open

    def _changed(self, logits: Floats, mask: Mask | None) -> Floats:
        """All logits of a row: biased, without what may not come yet, penalised, masked."""
        logits = logits.copy()
        logits[self._biased] += self._biases
        if self._num_chosen < self._sampling.min_tokens:
            logits[self._eos] = -np.inf
        if self._seen is not None:
            self._seen.penalise(logits)
        if mask is not None:
            logits[~is_allowed(mask, len(logits))] = -np.inf
        return logits

    def _draw(self, values: NDArray[np.float64]) -> int:
        """Where in the values, largest first: by their probabilities, of the fewest that make up top_p."""
        weights = np.exp((values - values[0]) / self._sampling.temperature)
        if self._sampling.min_p > 0:
            weights = weights[weights >= self._sampling.min_p]  # the first one is 1
        sums = np.cumsum(weights)
        num_kept = int(np.searchsorted(sums, self._sampling.top_p * sums[-1])) + 1
        kept = sums[: min(num_kept, len(sums))]
        place = int(np.searchsorted(kept, self._generator.random() * kept[-1], side="right"))
        return min(place, len(kept) - 1)  # a random number next to 1 may round to the whole sum

    def _logprobs(self, token: int, logits: Floats) -> TokenLogprobs | None:
        """Of the model's own distribution: before biases, penalties and temperature."""
        if self._sampling.num_logprobs is None:
            return None
        most = float(logits.max())
        total = most + math.log(float(np.exp(logits - most).sum(dtype=np.float64)))
        ids = largest(logits, self._sampling.num_logprobs)
        return TokenLogprobs(float(logits[token]) - total, ids.tolist(), [float(logits[id_]) - total for id_ in ids])


class _Seen:
    """Which tokens there are already, and how often in the completion; only those that are penalised."""

    def __init__(self, sampling: Sampling, prompt_ids: Sequence[int]) -> None:
        self._sampling = sampling
        first = sorted(set(prompt_ids)) if sampling.repetition_penalty != 1 else []
        self._places = {token: place for place, token in enumerate(first)}
        self._ids: Ids = np.array([*first, *[0] * sampling.max_tokens], dtype=np.int32)
        self._times: Floats = np.zeros(len(self._ids), dtype=np.float32)

    def add(self, token: int) -> None:
        """The token comes next."""
        place = self._places.setdefault(token, len(self._places))
        self._ids[place] = token
        self._times[place] += 1

    def penalise(self, logits: Floats) -> None:
        """Change them in place."""
        ids, times = self._ids[: len(self._places)], self._times[: len(self._places)]
        values = logits[ids]
        factor = np.float32(self._sampling.repetition_penalty)
        if factor != 1:
            values = np.where(values > 0, values / factor, values * factor)
        if self._sampling.presence_penalty or self._sampling.frequency_penalty:
            values -= self._sampling.frequency_penalty * times + self._sampling.presence_penalty * (times > 0)
        logits[ids] = values


def _is_penalised(sampling: Sampling) -> bool:
    return bool(sampling.repetition_penalty != 1 or sampling.presence_penalty or sampling.frequency_penalty)
