"""Which principal has computed which prefix: a shadow of OpenVINO's prefix cache, which does not know principals.

A block is 32 tokens; its name is a hash of it and of everything before it. The library shares blocks between all
sequences, so a request would be answered sooner if another principal's prompt began alike, and that can be measured.
This index distinguishes a principal's own blocks, which may speed up its prompts, from blocks of others only.
It may still list a block that the library has dropped; then a prefill takes its normal time. Pure; knows no library.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

BLOCK_TOKENS = 32

# A last block that is not full: the name of the block in front of it, and its ids.
Tail = tuple[bytes, tuple[int, ...]]


def block_names(ids: Sequence[int], before: bytes = b"") -> list[bytes]:
    """The names of all full blocks of ``ids``; ``before`` is the name of the block in front of them."""
    names = []
    for start in range(0, len(ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        before = block_name(ids[start : start + BLOCK_TOKENS], before)
        names.append(before)
    return names


def block_name(ids: Sequence[int], before: bytes) -> bytes:
    """The name of a block, or of the beginning of one."""
    return blake2b(before + array("q", ids).tobytes(), digest_size=16).digest()


class PrefixIndex:
    """Blocks and the keys of the principals that computed them; drops the least recently used."""

    def __init__(self, max_num_blocks: int) -> None:
        self._max_num_blocks = max_num_blocks
        self._owners: OrderedDict[bytes, set[str]] = OrderedDict()
        self._tails: OrderedDict[Tail, None] = OrderedDict()

    def add(self, names: Sequence[bytes], key: str) -> None:
        """``key`` has computed these blocks (or has waited as long as that takes)."""
        for name in names:
            self._owners.setdefault(name, set()).add(key)
            self._owners.move_to_end(name)
        while len(self._owners) > self._max_num_blocks:
            self._owners.popitem(last=False)

    def is_cached(self, name: bytes) -> bool:
        """Whether any principal has computed the block."""
        return name in self._owners

    def is_own(self, name: bytes, key: str) -> bool:
        """Whether ``key`` has computed the block."""
        return key in self._owners.get(name, ())

    def add_tail(self, before: bytes, ids: Sequence[int]) -> None:
        """A sequence has a last block that is not full: the one behind ``before``, beginning with ``ids``."""
        self._tails[before, tuple(ids)] = None
        self._tails.move_to_end((before, tuple(ids)))
        while len(self._tails) > self._max_num_blocks:
            self._tails.popitem(last=False)

    def tail(self, before: bytes, ids: Sequence[int]) -> Tail | None:
        """The longest cached tail for a prompt that continues with ``ids`` after the block ``before``, or None."""
        for length in range(min(len(ids), BLOCK_TOKENS - 1), 0, -1):
            candidate = (before, tuple(ids[:length]))
            if candidate in self._tails:
                return candidate
        return None
