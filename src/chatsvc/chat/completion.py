"""One completion: takes ids, gives text, ends at a stop string. Knows nothing about engines or callers."""

from __future__ import annotations

from collections.abc import Sequence

from chatsvc.chat.detokenize import REPLACEMENT, Detokenizer
from chatsvc.chat.stopping import StopMatcher
from chatsvc.chat.token_texts import TokenTexts
from chatsvc.chat.types import ScoredToken
from chatsvc.engine.protocol import TokenLogprobs


class Completion:
    """Counts tokens and collects the text of one generation.

    The text never ends in U+FFFD, which stands for a character that was cut off (by the length limit, a stop string or
    a cancel). So U+FFFD is held back until more text shows that the model really wrote invalid UTF-8.

    Args:
        detokenizer: turns its ids into text.
        stop: strings that end the completion and are not part of its text.
        min_tokens: stop strings are looked for only after so many tokens.
        texts: texts of single tokens, if log-probabilities were requested.

    Attributes:
        num_tokens: ids that were fed, including those of a stop string, without an end-of-sequence id.
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
        """Whether a stop string was completed; then the text is complete too."""
        return self._matcher.stopped

    @property
    def text(self) -> str:
        """All returned pieces, joined."""
        return "".join(self._pieces)

    def feed(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs] = ()) -> str:
        """Add ids; returns the new text, which may be empty. Ids after a stop string are ignored and not counted."""
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
        """The tokens with log-probabilities that were fed since the last call."""
        scored, self._scored = tuple(self._scored), []
        return scored

    def flush(self) -> str:
        """At the end: the text that was held back, without a character that was cut off."""
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
