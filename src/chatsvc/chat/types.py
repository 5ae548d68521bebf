"""The domain's nouns between the wire and the engine. Knows nothing about JSON or tokens' texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. ``content`` is plain text; nothing in it can become a role boundary."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request that has passed the schema: every bound on size and range already holds.

    ``max_tokens`` None: the configured default, or what the context has room for if that is less. ``keep``: the turn is
    stored in a conversation of the caller's.
    """

    messages: tuple[Message, ...]
    max_tokens: int | None
    temperature: float
    top_p: float
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    conversation_id: str | None = None
    model: str | None = None
    keep: bool = True


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one completion; ``num_prompt_tokens`` counts the rendered template."""

    num_prompt_tokens: int
    num_completion_tokens: int
    num_cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing new yet: a chance to keep the line alive. ``position`` counts from 1, and is 0 in the engine."""

    position: int = 0
    estimate_s: float | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the completion; never ends inside a character, never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of a completion."""

    id: str
    reason: Literal["stop", "length"]
    usage: Usage
    model: str
    conversation_id: str | None
