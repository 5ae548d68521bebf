"""The caller's handle of one sequence in the engine: a queue with an end. Knows nothing about sockets."""

from __future__ import annotations

import copy
import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chatsvc.engine.protocol import Accepted, Delta, Finished, TokenLogprobs
from chatsvc.errors import ChatsvcError
from chatsvc.models.card import ModelCard


@dataclass(frozen=True, slots=True)
class Tokens:
    """New ids; ``logprobs`` has one entry for each where they were asked for, and is empty otherwise."""

    ids: Sequence[int]
    logprobs: Sequence[TokenLogprobs] = ()


class Generation:
    """A queue of new ids. One thread reads; the client's thread puts.

    Attributes:
        card: the model that answers; the one the prompt was rendered for.
        is_accepted: whether its grammar was compiled, or it has none.
    """

    def __init__(self, card: ModelCard, cancel: Callable[[], None], *, is_accepted: bool = True) -> None:
        self.card = card
        self.is_accepted = is_accepted
        self._cancel = cancel
        self._queue: queue.SimpleQueue[Delta | Finished | ChatsvcError] = queue.SimpleQueue()
        self._end: Finished | ChatsvcError | None = None

    def read(self, timeout_s: float) -> Tokens | Finished | None:
        """All ids since the last call, or the end; None if nothing arrived within the time.

        Raises:
            ModelFailed: its logits were not finite.
            EngineUnavailable: the engine died, hung or ended with this sequence unfinished.
            Draining: the engine was shutting down when the submit arrived; submit again.
            InvalidRequest: its grammar was refused.
        """
        ids: list[int] = []
        logprobs: list[TokenLogprobs] = []
        while self._end is None:
            try:
                item = self._queue.get(timeout=timeout_s) if not ids and timeout_s > 0 else self._queue.get_nowait()
            except queue.Empty:
                break
            if isinstance(item, Delta):
                ids += item.token_ids
                logprobs += item.logprobs
            else:
                self._end = item
        if ids:
            return Tokens(ids, logprobs)
        if isinstance(self._end, ChatsvcError):
            raise copy.copy(self._end)
        return self._end

    def cancel(self) -> None:
        """Stop it; a :class:`Finished` with reason ``cancelled`` follows. Does nothing if it has ended."""
        self._cancel()

    def put(self, item: Accepted | Delta | Finished | ChatsvcError) -> None:
        """For the client's thread: new ids, or the end."""
        if isinstance(item, Accepted):
            self.is_accepted = True
        else:
            self._queue.put(item)
