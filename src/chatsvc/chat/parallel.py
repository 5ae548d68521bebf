"""Runs several completions of one request in parallel, each with its own admission, record and quota.

Knows nothing about completions: the caller passes a function that starts each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from chatsvc.chat.types import Event, Finish, IndexedEvent


def in_parallel(starts: Sequence[Callable[[], Iterator[Event]]]) -> Iterator[IndexedEvent]:
    """Start all and yield their events in turn until all have ended. Close the iterator to cancel all.

    The first event is yielded only after all were admitted: if one is refused, none runs.
    """
    running: dict[int, Iterator[Event]] = {}
    try:
        begun: list[IndexedEvent] = []
        for index, start in enumerate(starts):
            running[index] = start()
            # Start, and the event after it: what can be refused is refused before the second event
            begun += [IndexedEvent(index, next(running[index])), IndexedEvent(index, next(running[index]))]
        yield from begun
        for choice in begun:
            if isinstance(choice.event, Finish):
                del running[choice.index]
        while running:
            for index in list(running):
                event = next(running[index])
                yield IndexedEvent(index, event)
                if isinstance(event, Finish):
                    del running[index]
    finally:
        for events in running.values():
            events.close()  # type: ignore[attr-defined]
