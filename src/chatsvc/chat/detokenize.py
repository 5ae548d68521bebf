"""Ids to text, incrementally and only in whole characters. All pieces joined equal the text of all ids.

Knows nothing about engines or callers.
"""

from __future__ import annotations

from tokenizers import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Decodes the ids of one completion.

    A token of a byte-level vocabulary may be a part of a character, and a decoder may treat the first token of a text
    differently (a leading space). So a window of ids is decoded, and a piece is what its text has grown by. The window
    starts at the last known boundary of characters. Text that ends in U+FFFD is held back until more ids complete it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []  # ids since the boundary before the last
        self._num_given = 0  # how many of them were returned as text
        self._given = ""  # and their text

    def feed(self, token_id: int) -> str:
        """Add an id; returns the text that is complete now, often empty."""
        self._window.append(token_id)
        text = self._decode(self._window)
        if len(text) <= len(self._given) or text.endswith(REPLACEMENT):
            return ""
        piece = text[len(self._given) :]
        del self._window[: self._num_given]
        self._num_given = len(self._window)
        self._given = self._decode(self._window)
        return piece

    def flush(self) -> str:
        """At the end: the text that was held back. A character that was cut off becomes U+FFFD."""
        return self._decode(self._window)[len(self._given) :]

    def _decode(self, token_ids: list[int]) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        return text
