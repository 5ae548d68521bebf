"""Which cache page belongs to whom: pages in use, pages that are kept because a prompt may begin like them, free ones.

A full page has a name: a hash of who may share it, of its tokens and of all before them. So a principal finds its own
prefixes only; there is nothing of others that an answer's speed could betray. Pages nobody uses are given away the
least recently used first. Pure; knows no library.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class Pages:
    """Pages 0 to ``num_pages`` - 1. A page that was given out is given back once for every time it was."""

    def __init__(self, num_pages: int) -> None:
        self._num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._num_users = [0] * num_pages
        self._by_name: dict[bytes, int] = {}
        self._names: dict[int, bytes] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()  # named, without users

    def __len__(self) -> int:
        """How many there are."""
        return self._num_pages

    @property
    def num_used(self) -> int:
        """Pages that live sequences hold."""
        return self._num_pages - len(self._free) - len(self._kept)

    def take(self, count: int) -> list[int] | None:
        """So many pages of one's own; None, and nothing changes, when there are not enough."""
        if count > len(self._free) + len(self._kept):
            return None
        return [self._take_one() for _ in range(count)]

    def share(self, names: Sequence[bytes]) -> list[int]:
        """The pages of the longest beginning of ``names`` that is here."""
        found = []
        for name in names:
            page = self._by_name.get(name)
            if page is None:
                break
            self._kept.pop(page, None)
            self._num_users[page] += 1
            found.append(page)
        return found

    def name(self, page: int, name: bytes) -> None:
        """The page is full now and may be shared; of two with the same content the first one is."""
        if name not in self._by_name:
            self._by_name[name] = page
            self._names[page] = name

    def give_back(self, pages: Sequence[int]) -> None:
        """A sequence does not need these any longer. The later ones of a prefix are forgotten first."""
        for page in reversed(pages):
            self._num_users[page] -= 1
            if self._num_users[page] == 0:
                if page in self._names:
                    self._kept[page] = None
                else:
                    self._free.append(page)

    def _take_one(self) -> int:
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._kept.popitem(last=False)
            del self._by_name[self._names.pop(page)]
        self._num_users[page] = 1
        return page
