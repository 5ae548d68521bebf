"""Draft tokens by prompt lookup: where the last three tokens occurred before, what followed them there.

Answers that quote their prompt (a summary, an edit, a document) have many such places. Drafts are checked in the same
pass as the token before them, which costs little while few rows share a pass. A draft counts only if the model chooses
the same token, so answers do not change. (Prompt lookup decoding; LLMA, arXiv 2304.04487.) Pure; knows no library.
"""

from __future__ import annotations

from collections.abc import Sequence

_NUM_KEY_TOKENS = 3


class Drafter:
    """Drafts for one sequence.

    Args:
        ids: prompt and completion; the owner appends to it.
        max_tokens: of a draft; 0 proposes nothing.
    """

    def __init__(self, ids: Sequence[int], max_tokens: int) -> None:
        self._ids = ids
        self._max_tokens = max_tokens
        self._length = min(2, max_tokens)
        self._followers: dict[tuple[int, ...], int] = {}
        self._num_seen = _NUM_KEY_TOKENS

    def propose(self, max_tokens: int) -> list[int]:
        """A draft of at most ``max_tokens``; often empty."""
        length = min(self._length, max_tokens)
        if length <= 0:
            return []
        ids = self._ids
        for place in range(self._num_seen, len(ids)):
            self._followers[tuple(ids[place - _NUM_KEY_TOKENS : place])] = place
        self._num_seen = max(self._num_seen, len(ids))
        place = self._followers.get(tuple(ids[-_NUM_KEY_TOKENS:]), len(ids))
        return list(ids[place : place + length])

    def learn(self, num_proposed: int, num_right: int) -> None:
        """Propose longer drafts after right ones, shorter after wrong ones."""
        if num_proposed:
            self._length = min(2 * num_right + 1, self._max_tokens)
