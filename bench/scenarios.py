"""What is asked: prompts, lengths, numbers of streams, the same for every server. Pure: nothing is sent from here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from zlib import crc32

from bench.load import Body, chat
from bench.shape import NUM_TEMPLATE_TOKENS, text_of_tokens


@dataclass(frozen=True, slots=True)
class Scenario:
    """A kind of load. Every stream sends one request a turn; a conversation's turns carry all that was said before.

    Attributes:
        num_prompt: tokens of the first turn's prompt, template included; of each later turn's new message.
        max_tokens: tokens of each answer; greedy, and never ended sooner.
    """

    name: str
    num_prompt: int
    max_tokens: int
    streams: tuple[int, ...]
    num_turns: int = 1

    def turns(self, num_streams: int, seed: int) -> Iterator[list[Body]]:
        """The bodies of each turn, one a stream. Answers in the history are fixed texts: each server gets the same."""
        histories: list[list[dict[str, str]]] = [[] for _ in range(num_streams)]
        for turn in range(self.num_turns):
            for number, history in enumerate(histories):
                own = crc32(self.name.encode()) + seed * 1_000_003 + number * 1009 + turn * 2
                if turn:
                    history.append({"role": "assistant", "content": text_of_tokens(self.max_tokens, own + 1)})
                question = text_of_tokens(self.num_prompt - NUM_TEMPLATE_TOKENS, own)
                history.append({"role": "user", "content": question})
            yield [chat(history, self.max_tokens) for history in histories]


SCENARIOS = (
    Scenario("short", num_prompt=64, max_tokens=128, streams=(1, 4, 8, 16, 32)),
    Scenario("long", num_prompt=512, max_tokens=32, streams=(1, 8, 16)),
    Scenario("conversation", num_prompt=64, max_tokens=32, streams=(1, 8), num_turns=10),
)
