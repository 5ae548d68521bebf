"""Masks: which ids of the vocabulary are allowed. Bit i % 32 of word i / 32 is that of id i."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.uint32]
_WORD_BITS = 32


def as_rows(masks: Sequence[Mask | None], num_ids: int) -> tuple[NDArray[np.int32], Mask]:
    """For each mask its row of the second array, or -1 for None; and the rows, with bits of ``num_ids`` ids only.

    A mask may be of a tokenizer with fewer ids than the model, or with more: what is missing is not allowed.
    """
    num_words = -(-num_ids // _WORD_BITS)
    given = [mask for mask in masks if mask is not None]
    rows = np.zeros((len(given), num_words), dtype=np.uint32)
    for row, mask in zip(rows, given, strict=True):
        row[: len(mask)] = mask[:num_words]
    if num_ids % _WORD_BITS:
        rows[:, -1] &= np.uint32((1 << num_ids % _WORD_BITS) - 1)
    is_given = np.array([mask is not None for mask in masks], dtype=bool)
    return np.where(is_given, np.cumsum(is_given) - 1, -1).astype(np.int32), rows


def is_allowed(mask: Mask, num_ids: int) -> NDArray[np.bool_]:
    """For each id whether it is allowed."""
    return np.unpackbits(as_rows([mask], num_ids)[1].view(np.uint8), bitorder="little")[:num_ids].astype(bool)
