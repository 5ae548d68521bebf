"""Which cache page belongs to whom: pages in use, pages that are kept because a prompt may begin like them, free ones.

A sequence is promised all the pages that it may need when it joins, and takes each when it comes to write there: until
then what is kept stays, and an answer that ends early leaves it there.

A page has a name once it is full: a hash of who may share it, of its tokens and of all before them. So a principal
finds nothing but its own prefixes and nobody's words; there is nothing of others that an answer's speed could betray. A
page in which nobody's words end has a name for these too. Pages nobody uses are given away the least recently used
first. Pure; knows no library.
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
        self._names: dict[int, list[bytes]] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()  # named, without users
        self._num_promised = 0
        self._num_ever_used = 0

    def __len__(self) -> int:
        """How many there are."""
        return self._num_pages

    @property
    def num_used(self) -> int:
        """Pages that live sequences hold or were promised."""
        return self._num_pages - len(self._free) - len(self._kept) + self._num_promised

    @property
    def num_ever_used(self) -> int:
        """Pages that have been taken once; they are the first ones."""
        return self._num_ever_used

    @property
    def num_free(self) -> int:
        """Pages that hold nothing; those that have been used before are taken first, then the first of the others."""
        return len(self._free)

    def promise(self, count: int) -> bool:
        """Set so many aside; False, and nothing changes, when there are not enough."""
        if self.num_used + count > self._num_pages:
            return False
        self._num_promised += count
        return True

    def take(self) -> int:
        """One of those that were promised, for oneself."""
        self._num_promised -= 1
        if self._free:
            page = self._free.pop()
            self._num_ever_used = max(self._num_ever_used, page + 1)
        else:
            page, _ = self._kept.popitem(last=False)
            for name in self._names.pop(page):
                del self._by_name[name]
        self._num_users[page] = 1
        return page

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
        """The page holds now what the name stands for, and may be shared; of two that do the first one is."""
        if name not in self._by_name:
            self._by_name[name] = page
            self._names.setdefault(page, []).append(name)

    def release(self, count: int) -> None:
        """So many that were promised are not needed."""
        self._num_promised -= count

    def give_back(self, pages: Sequence[int]) -> None:
        """A sequence needs none of these any longer. A prefix is forgotten from its end."""
        for page in reversed(pages):
            self._num_users[page] -= 1
            if self._num_users[page] == 0:
                if page in self._names:
                    self._kept[page] = None
                else:
                    self._free.append(page)
