"""One completion as it grows: ids in, text out, with its stop strings. Knows nothing about engines or callers."""

from __future__ import annotations

from collections.abc import Sequence

from chatsvc.chat.detokenize import Detokenizer
from chatsvc.chat.stopping import StopMatcher


class Completion:
    """Counts and joins what one generation gives.

    Attributes:
        num_tokens: ids that made the text, those of a stop string included; an end-of-sequence id is not among them.
    """

    def __init__(self, detokenizer: Detokenizer, stop: Sequence[str]) -> None:
        self._detokenizer = detokenizer
        self._matcher = StopMatcher(stop)
        self._pieces: list[str] = []
        self.num_tokens = 0

    @property
    def is_stopped(self) -> bool:
        """A stop string is complete: nothing more belongs to the text."""
        return self._matcher.stopped

    @property
    def text(self) -> str:
        """All pieces that were given out, joined."""
        return "".join(self._pieces)

    def feed(self, token_ids: Sequence[int]) -> str:
        """The piece that these ids add; may be empty. Ids behind a stop string are left out, and not counted."""
        piece = ""
        for token_id in token_ids:
            if self.is_stopped:
                break
            self.num_tokens += 1
            piece += self._matcher.feed(self._detokenizer.feed(token_id))
        return self._give(piece)

    def flush(self) -> str:
        """The piece that was held back, at the end."""
        if self.is_stopped:
            return ""
        piece = self._matcher.feed(self._detokenizer.flush())
        return self._give(piece if self.is_stopped else piece + self._matcher.flush())

    def _give(self, piece: str) -> str:
        if piece:
            self._pieces.append(piece)
        return piece
