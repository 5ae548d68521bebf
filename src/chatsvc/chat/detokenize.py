"""Ids to text, piece by piece, never a part of a character. The pieces joined are the text of all ids together.

Knows nothing about where ids come from or what happens to the text.
"""

from __future__ import annotations

from tokenizers import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """One completion's ids on their way to text.

    A token of a byte-level vocabulary may hold a part of a character; a decoder may also treat the first token of a
    text differently (a leading space). So each new piece is what decoding a window grows by: the window starts at the
    last place known to be between characters, and text that ends in U+FFFD is held back until more ids decide it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []  # ids since the place before the last
        self._num_given = 0  # how many of them have been given out as text
        self._given = ""  # and their text

    def feed(self, token_id: int) -> str:
        """The text that is certain now; often empty."""
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
        """What was held back, at the end. A character that was cut off comes out as U+FFFD, as in the whole text."""
        return self._decode(self._window)[len(self._given) :]

    def _decode(self, token_ids: list[int]) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        return text
