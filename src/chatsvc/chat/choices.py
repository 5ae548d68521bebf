"""The choices of one request while the engine generates them: one, or several for OpenAI's ``n``.

Each choice is a sequence of its own in the engine. Knows nothing about admission, records or HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from chatsvc.chat.completion import Completion
from chatsvc.chat.types import Delta, Reason, Waiting
from chatsvc.engine.protocol import Finished
from chatsvc.engine.web_side.generation import Generation
from chatsvc.errors import Draining

# The engine advances all sequences of a request in the same steps, so waiting for one delays the others little. The
# wait is short because a choice that does not run yet must not delay those that do.
_POLL_OF_SEVERAL_S = 0.02


@dataclass(slots=True)
class RunningChoice:
    """A choice being generated; ``end`` is None until it has ended."""

    index: int
    completion: Completion
    num_cached_tokens: int = 0
    end: Reason | None = None

    def advance(self, generation: Generation, timeout_s: float) -> Iterator[Delta]:
        """Read what the engine has generated for it; wait up to ``timeout_s``.

        Raises:
            Draining: the engine shuts down.
        """
        got = generation.read(timeout_s)
        if got is None:
            return
        text = ""
        if isinstance(got, Finished):
            if got.reason == "cancelled":  # by the engine: after a cancel of ours nothing is read
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


def advance_all(
    choices: Sequence[RunningChoice], generations: Sequence[Generation], poll_s: float, check: Callable[[], None]
) -> Iterator[Delta | Waiting]:
    """Yield deltas until all choices have ended, and Waiting when there was none for a while.

    Not before their grammars are accepted: a refusal comes before the second event of a stream.

    Args:
        choices: the choices.
        generations: the source of each choice's tokens.
        poll_s: ``check`` is called at least this often.
        check: raises if the request must end.
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
        if not has_moved and all(generation.is_accepted for _, generation in growing):
            yield Waiting()
