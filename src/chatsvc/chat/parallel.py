"""Several completions of one request at the same time, each with its own admission, record and quota.

Knows nothing about what a completion needs: it is given what starts each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from chatsvc.chat.types import Choice, Event, Finish


def together(starts: Sequence[Callable[[], Iterator[Event]]]) -> Iterator[Choice]:
    """Start all, then give what happens in each by turns until the last has ended. Close the iterator to cancel all.

    All have begun before the first event is given: where one is refused, all are.
    """
    running: dict[int, Iterator[Event]] = {}
    try:
        begun: list[Choice] = []
        for index, start in enumerate(starts):
            running[index] = start()
            # the first event says that it is admitted; what is refused is refused before the second
            begun += [Choice(index, next(running[index])), Choice(index, next(running[index]))]
        yield from begun
        for choice in begun:
            if isinstance(choice.event, Finish):
                del running[choice.index]
        while running:
            for index in list(running):
                event = next(running[index])
                yield Choice(index, event)
                if isinstance(event, Finish):
                    del running[index]
    finally:
        for events in running.values():
            events.close()  # type: ignore[attr-defined]
