"""The completions of one request while the engine makes them: usually one, several where OpenAI's ``n`` asks for them.

Each is a sequence of its own in the engine. Knows nothing about admission, records or HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from chatsvc.chat.completion import Completion
from chatsvc.chat.types import Delta, Reason, Waiting
from chatsvc.engine.protocol import Finished
from chatsvc.engine.web_side.generation import Generation
from chatsvc.errors import Draining

# All sequences of a request move in the same steps of the engine, so while one is waited for the others have not long
# to wait; but one that does not run yet must not hold up those that do.
_POLL_OF_SEVERAL_S = 0.02


@dataclass(slots=True)
class Growing:
    """One completion; ``end`` is None while it grows."""

    index: int
    completion: Completion
    num_cached_tokens: int = 0
    end: Reason | None = None

    def advance(self, generation: Generation, timeout_s: float) -> Iterator[Delta]:
        """Take in what the engine has for it, waiting for so long.

        Raises:
            Draining: the engine is going down.
        """
        got = generation.read(timeout_s)
        if got is None:
            return
        text = ""
        if isinstance(got, Finished):
            if got.reason == "cancelled":  # not by us: we read no more after a cancel
                raise Draining
            self.num_cached_tokens = got.num_cached_tokens
            self.end = "length" if got.reason == "length" else "stop"
        else:
            text = self.completion.feed(got.ids, got.logprobs)
            if self.completion.is_stopped:
                self.end = "stop"
        if self.end is not None:
            text += self.completion.flush()
        scored = self.completion.take_scored() if text or self.end is not None else ()
        if text or scored:
            yield Delta(text, self.index, scored)


def grow(
    choices: Sequence[Growing], generations: Sequence[Generation], poll_s: float, check: Callable[[], None]
) -> Iterator[Delta | Waiting]:
    """What happens until all have ended; Waiting where nothing did for a while.

    Args:
        choices: as many as generations.
        generations: where their tokens come from.
        poll_s: how often ``check`` is called at the least.
        check: raises what ends the request.
    """
    timeout_s = poll_s if len(choices) == 1 else min(poll_s, _POLL_OF_SEVERAL_S)
    growing = list(zip(choices, generations, strict=True))
    while growing:
        check()
        has_moved = False
        for place, (choice, generation) in enumerate(growing):
            for delta in choice.advance(generation, timeout_s if place == 0 else 0):
                has_moved = True
                yield delta
            if choice.end is not None:
                generation.cancel()
        growing = [pair for pair in growing if pair[0].end is None]
        if not has_moved:
            yield Waiting()
