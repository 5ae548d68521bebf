"""The caller's handle of one sequence in the engine: a queue with an end. Knows nothing about sockets."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence

from chatsvc.engine.protocol import Finished
from chatsvc.errors import Unavailable
from chatsvc.models.card import ModelCard


class Generation:
    """New ids as they come. One thread reads; the client's thread puts.

    Attributes:
        card: the model that answers; the one the prompt was rendered for.
    """

    def __init__(self, card: ModelCard, cancel: Callable[[], None]) -> None:
        self.card = card
        self._cancel = cancel
        self._queue: queue.SimpleQueue[list[int] | Finished | Unavailable] = queue.SimpleQueue()
        self._end: Finished | Unavailable | None = None

    def read(self, timeout_s: float) -> Sequence[int] | Finished | None:
        """All ids that have come since the last call, or how it ended; None when nothing came within the time.

        Raises:
            EngineUnavailable: the engine died, hung or ended with this sequence unfinished.
            Draining: the engine was going down when the submit arrived; submit again.
        """
        ids: list[int] = []
        while self._end is None:
            try:
                item = self._queue.get(timeout=timeout_s) if not ids and timeout_s > 0 else self._queue.get_nowait()
            except queue.Empty:
                return ids or None
            if isinstance(item, list):
                ids += item
            else:
                self._end = item
        if ids:
            return ids
        if isinstance(self._end, Unavailable):
            raise type(self._end)(self._end.message)
        return self._end

    def cancel(self) -> None:
        """Stop it; a :class:`Finished` with reason ``cancelled`` follows. Harmless when it has ended."""
        self._cancel()

    def put(self, item: list[int] | Finished | Unavailable) -> None:
        """For the client's thread: new ids, or the end."""
        self._queue.put(item)
