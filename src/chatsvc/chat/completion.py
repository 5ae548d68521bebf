"""One completion as it grows: ids in, text out, with its stop strings. Knows nothing about engines or callers."""

from __future__ import annotations

from collections.abc import Sequence

from chatsvc.chat.detokenize import REPLACEMENT, Detokenizer
from chatsvc.chat.stopping import StopMatcher
from chatsvc.chat.token_texts import TokenTexts
from chatsvc.chat.types import ScoredToken
from chatsvc.engine.protocol import TokenLogprobs


class Completion:
    """Counts and joins what one generation gives.

    The text never ends in U+FFFD: that is a character whose rest was cut off, by its length, by a stop string, or
    because nobody listens any more. So U+FFFD is held back until more text shows that the model's bytes are no UTF-8.

    Args:
        detokenizer: for its ids.
        stop: strings that end it and are not part of its text.
        min_tokens: in so many tokens no stop string is looked for.
        texts: of single tokens; where log-probabilities are wanted.

    Attributes:
        num_tokens: ids that made the text, those of a stop string included; an end-of-sequence id is not among them.
    """

    def __init__(
        self, detokenizer: Detokenizer, stop: Sequence[str], *, min_tokens: int = 0, texts: TokenTexts | None = None
    ) -> None:
        self._detokenizer = detokenizer
        self._matcher = StopMatcher(stop)
        self._min_tokens = min_tokens
        self._texts = texts
        self._scored: list[ScoredToken] = []
        self._pieces: list[str] = []
        self._replaced = ""
        self.num_tokens = 0

    @property
    def is_stopped(self) -> bool:
        """A stop string is complete: nothing more belongs to the text."""
        return self._matcher.stopped

    @property
    def text(self) -> str:
        """All pieces that were given out, joined."""
        return "".join(self._pieces)

    def feed(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs] = ()) -> str:
        """The piece that these ids add; may be empty. Ids behind a stop string are left out, and not counted."""
        piece = ""
        for place, token_id in enumerate(token_ids):
            if self.is_stopped:
                break
            self.num_tokens += 1
            text = self._detokenizer.feed(token_id)
            piece += text if self.num_tokens <= self._min_tokens else self._matcher.feed(text)
            if logprobs and self._texts is not None:
                self._scored.append(self._texts.scored(token_id, logprobs[place]))
        return self._give(piece)

    def take_scored(self) -> tuple[ScoredToken, ...]:
        """The tokens that were fed since the last call, where they came with log-probabilities."""
        scored, self._scored = tuple(self._scored), []
        return scored

    def flush(self) -> str:
        """The piece that was held back, at the end; without a character that was cut off."""
        if self.is_stopped:
            return ""
        piece = self._matcher.feed(self._detokenizer.flush())
        return self._give(piece if self.is_stopped else piece + self._matcher.flush())

    def _give(self, text: str) -> str:
        text = self._replaced + text
        piece = text.rstrip(REPLACEMENT)
        self._replaced = text[len(piece) :]
        if piece:
            self._pieces.append(piece)
        return piece
