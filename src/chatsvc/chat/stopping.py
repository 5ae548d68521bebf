"""Finds stop strings in a text that arrives in pieces, and removes them. Knows nothing about tokens.

The result does not depend on how the text was cut into pieces. The stop string that is completed first counts; of two
that are completed by the same character, the longer.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Searches one completion's text for its stop strings."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._searches = [_Search(text) for text in stop]
        self._held = ""
        self.stopped = False

    def feed(self, piece: str) -> str:
        """Add a piece; returns the text that can be shown. Sets ``stopped`` when a stop string was completed."""
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
        """At the end: the text that was held back as the possible beginning of a stop string."""
        held, self._held = self._held, ""
        return held


class _Search:
    """Searches for one stop string by the Knuth-Morris-Pratt algorithm.

    Its time is linear in text plus stop string, not in their product. That matters because a caller controls both: the
    model can be told to write text that almost matches a stop string of a thousand characters.
    """

    def __init__(self, stop: str) -> None:
        self._stop = stop
        # _borders[n - 1]: length of the longest proper beginning of stop[:n] that is also its end.
        self._borders = [0]
        # How many first characters of the stop string the text ends with.
        self.num_matched = 0

    def step(self, character: str) -> int:
        """Read one more character. Returns the stop string's length if it is complete now, else 0."""
        self.num_matched = self._extended(self.num_matched, character)
        if self.num_matched == len(self._stop):
            return len(self._stop)
        if self.num_matched > len(self._borders):  # computed only as far as the text has matched
            self._borders.append(self._extended(self._borders[-1], self._stop[len(self._borders)]))
        return 0

    def _extended(self, num_matched: int, character: str) -> int:
        while num_matched and self._stop[num_matched] != character:
            num_matched = self._borders[num_matched - 1]
        return num_matched + 1 if self._stop[num_matched] == character else 0
