"""Stop strings: found also where they lie across pieces, and never shown. Knows nothing about tokens.

What comes out does not depend on how the text was cut into pieces: the stop string that is complete first counts, of
two that are complete at the same character the longer.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Watches one completion's text for its stop strings."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._searches = [_Search(text) for text in stop]
        self._held = ""
        self.stopped = False

    def feed(self, piece: str) -> str:
        """The text that can be shown; sets ``stopped`` when a stop string was completed."""
        if not self._searches:
            return piece
        text = self._held + piece
        for end, character in enumerate(piece, start=len(self._held) + 1):
            longest = max(search.step(character) for search in self._searches)
            if longest:
                self.stopped = True
                self._held = ""
                return text[: end - longest]
        num_held = max(search.num_matched for search in self._searches)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def flush(self) -> str:
        """What was held back, when the completion ended without the rest of a stop string."""
        held, self._held = self._held, ""
        return held


class _Search:
    """One stop string, searched for by the algorithm of Knuth, Morris and Pratt.

    Its time grows with the text plus the stop string, and not with their product: both may be a caller's, who can have
    the model write what nearly matches a stop string of a thousand characters.
    """

    def __init__(self, stop: str) -> None:
        self._stop = stop
        # _borders[n - 1]: length of the longest proper beginning of stop[:n] that is also its end.
        self._borders = [0]
        # How many characters of the stop string the text ends with.
        self.num_matched = 0

    def step(self, character: str) -> int:
        """Read one character more; the length of the stop string where it is complete now, else 0."""
        self.num_matched = self._extended(self.num_matched, character)
        if self.num_matched == len(self._stop):
            return len(self._stop)
        if self.num_matched > len(self._borders):  # computed no further than the text has come
            self._borders.append(self._extended(self._borders[-1], self._stop[len(self._borders)]))
        return 0

    def _extended(self, num_matched: int, character: str) -> int:
        while num_matched and self._stop[num_matched] != character:
            num_matched = self._borders[num_matched - 1]
        return num_matched + 1 if self._stop[num_matched] == character else 0
