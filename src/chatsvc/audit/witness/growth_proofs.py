"""Consistency proofs of a growing log, made from its files; each reads only the records since the last proof."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from chatsvc.audit.format import layout
from chatsvc.audit.format.record import MAX_LINE_BYTES
from chatsvc.audit.format.rules import position_at
from chatsvc.audit.format.segment import first_line
from chatsvc.audit.format.tree import Frontier, ProofInvalid, extension_proof, leaf_hash


class GrowthProofs:
    """Reads one log's directory from where the last proof ended; for another size it searches again."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._frontier = Frontier()
        self._segment: Path | None = None
        self._offset = 0

    def proof(self, old: int, new: int) -> list[bytes]:
        """RFC 6962 proof that the tree of ``old`` records is a prefix of the tree of ``new``; empty if ``old`` is 0.

        Raises:
            ProofInvalid: the records do not exist here, or no longer do.
            RecordInvalid: a segment has no readable header.
            OSError: a file cannot be read.
        """
        if old == 0:
            return []
        if self._segment is None or self._frontier.size != old:
            self._go_to(old)
        leaves = list(self._leaves(new - old))
        proof = extension_proof(self._frontier, leaves)
        self._take(leaves)
        return proof

    def _go_to(self, size: int) -> None:
        """A segment's header repeats the tree before it, so that nothing earlier is read."""
        found = [path for path in layout.segments(self._directory) if (layout.first_seq(path) or 0) <= size]
        if not found:
            raise ProofInvalid(f"{self._directory} no longer holds record {size}.")
        self._segment, self._offset = found[-1], 0
        self._frontier = position_at(first_line(self._segment)).frontier
        self._take(list(self._leaves(size - self._frontier.size)))

    def _take(self, leaves: list[bytes]) -> None:
        for leaf in leaves:
            self._frontier.append(leaf)

    def _leaves(self, count: int) -> Iterator[bytes]:
        """The next ``count`` leaf hashes, also of the segments that follow."""
        for segment in layout.segments(self._directory):
            if not count:
                return
            if self._segment is not None and segment < self._segment:
                continue
            if segment != self._segment:
                self._segment, self._offset = segment, 0
            with segment.open("rb") as file:
                file.seek(self._offset)
                while count and (line := file.readline(MAX_LINE_BYTES)).endswith(b"\n"):
                    self._offset += len(line)
                    count -= 1
                    yield leaf_hash(line[:-1])
        if count:
            raise ProofInvalid(f"{self._directory} holds {count} records fewer than its checkpoint states.")
