"""Stop strings: found also where they lie across pieces, and never shown. Knows nothing about tokens.

What comes out does not depend on how the text was cut into pieces: the stop string that is complete first counts, of
two that are complete at the same character the longer.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Watches one completion's text for its stop strings."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def feed(self, piece: str) -> str:
        """The text that can be shown; sets ``stopped`` when a stop string was completed."""
        if not self._stop:
            return piece
        text = self._held + piece
        match = self._first_match(text)
        if match is not None:
            self.stopped = True
            self._held = ""
            return text[: match[0]]
        held = self._num_undecided(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """What was held back, when the completion ended without the rest of a stop string."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, int] | None:
        """(start, end) of the match that ends first; at the same end the one that starts first."""
        found = [(text.find(stop), len(stop)) for stop in self._stop]
        matches = [(start, start + length) for start, length in found if start >= 0]
        return min(matches, key=lambda match: (match[1], match[0])) if matches else None

    def _num_undecided(self, text: str) -> int:
        """Length of the longest end of the text that could be the start of a stop string."""
        longest = min(len(text), max((len(stop) - 1 for stop in self._stop), default=0))
        return next((n for n in range(longest, 0, -1) if any(stop.startswith(text[-n:]) for stop in self._stop)), 0)
