"""The KV cache's pages: in use, cached (unused, but a later prompt may begin like them), or free.

A sequence reserves all pages that it may need when it joins, and takes each when it is about to write there. Until then
cached pages stay cached, even if the sequence ends early.

A full page has a name: a hash of its sharing key, its tokens and all tokens before them. So a principal finds only its
own prefixes and the public prompt prefix, and the speed of an answer tells nothing about other principals. A page in
which the public prefix ends has a second name, for that part. Cached pages are evicted the least recently used first.
Pure; knows no library.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class Pages:
    """Pages 0 to ``num_pages`` - 1. Every :meth:`take` and :meth:`share` of a page needs its own :meth:`give_back`."""

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
        """Pages that sequences hold or have reserved."""
        return self._num_pages - len(self._free) - len(self._kept) + self._num_promised

    @property
    def num_ever_used(self) -> int:
        """Pages that have been taken at least once: the first so many."""
        return self._num_ever_used

    @property
    def num_free(self) -> int:
        """Pages that hold nothing. Used ones are taken before unused ones, because they are in memory."""
        return len(self._free)

    def promise(self, count: int) -> bool:
        """Reserve so many; False, and nothing changes, if there are not enough."""
        if self.num_used + count > self._num_pages:
            return False
        self._num_promised += count
        return True

    def take(self) -> int:
        """Take one of the reserved pages."""
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
        """The pages of the longest prefix of ``names`` that is cached, now in use."""
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
        """Publish what the page holds under a name; an existing holder of the name wins."""
        if name not in self._by_name:
            self._by_name[name] = page
            self._names.setdefault(page, []).append(name)

    def release(self, count: int) -> None:
        """Return so many reserved pages."""
        self._num_promised -= count

    def give_back(self, pages: Sequence[int]) -> None:
        """A sequence stops using these. The last ones are evicted first, so that a prefix stays usable."""
        for page in reversed(pages):
            self._num_users[page] -= 1
            if self._num_users[page] == 0:
                if page in self._names:
                    self._kept[page] = None
                else:
                    self._free.append(page)
