"""The values that the chat package takes and gives. Knows nothing about JSON or tokenizers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from chatsvc.engine.protocol import Grammar

Reason = Literal["stop", "length"]
Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call by the assistant; ``arguments`` is JSON as the model wrote it, not checked."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. No text in it can become a role boundary.

    Attributes:
        role: who speaks.
        content: plain text; may be empty if there are ``tool_calls``.
        tool_calls: only of an ``assistant``.
        tool_call_id, name: only of a ``tool``: the call that it answers, and the function. Both may be None.
    """

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class SamplingRequest:
    """How the caller wants tokens chosen; names and meanings are those of ``/v1``.

    None in the first five means the model's own default, else the configured one.

    Attributes:
        temperature: 0 always takes the most probable token.
        top_p: in (0, 1], the sum of the candidates' probabilities.
        top_k: the largest number of candidates; 0 or less sets no limit.
        min_p: in [0, 1], the least probability of a candidate, relative to the most probable one.
        repetition_penalty: above 0; values above 1 make tokens of prompt and completion less likely.
        presence_penalty, frequency_penalty: -2 to 2, subtracted from the logits of tokens of the completion.
        logit_bias: token id to a number from -100 to 100 that is added to its logit.
        seed: the same seed gives the same answer; choice ``i`` of several uses ``seed + i``.
        min_tokens: until so many tokens neither an end-of-sequence token nor a stop string ends the completion.
        ignore_eos: an end-of-sequence token does not end the completion.
        num_logprobs: alternatives to report for each token; 0 reports the chosen token alone, None nothing.
        grammar: what the completion must be.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    num_logprobs: int | None = None
    grammar: Grammar | None = None


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request that passed the schema: all limits on size and range are already checked.

    Attributes:
        messages: the new turns.
        prompt: text or token ids to continue, instead of messages; no roles and no template.
        max_tokens: for each choice; None: the configured default, or what the context leaves if that is less.
        sampling: how tokens are chosen.
        stop: strings that end a completion and are not part of it.
        num_choices: number of completions of the same prompt (OpenAI's ``n``).
        continues_final_message: the completion continues the last message.
        opens_answer: the prompt ends with the beginning of the assistant's turn (``add_generation_prompt``).
        conversation_id: the caller's conversation that the request continues.
        model: the requested model's name.
        keep: store the turns in a conversation.
    """

    messages: tuple[Message, ...] = ()
    prompt: str | tuple[int, ...] | None = None
    max_tokens: int | None = None
    sampling: SamplingRequest = SamplingRequest()
    stop: tuple[str, ...] = ()
    num_choices: int = 1
    continues_final_message: bool = False
    opens_answer: bool = True
    conversation_id: str | None = None
    model: str | None = None
    keep: bool = True


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request; ``num_prompt_tokens`` counts the rendered prompt."""

    num_prompt_tokens: int
    num_completion_tokens: int
    num_cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Start:
    """The request was admitted: the answer's id, the conversation that will store it, and the model."""

    id: str
    conversation_id: str | None
    model: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing new yet, so that the caller can send a keep-alive. ``position`` in the queue from 1; 0: in the engine."""

    position: int = 0
    estimate_s: float | None = None


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token with the natural logarithm of its probability; ``data`` may end inside a character."""

    data: bytes
    logprob: float
    alternatives: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a completion's text; never ends inside a character.

    Attributes:
        text: empty only if the completion ends with scored tokens that add no text.
        index: the choice that it belongs to.
        scored: the tokens since the last delta, if log-probabilities were requested.
    """

    text: str
    index: int = 0
    scored: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True, slots=True)
class Finish:
    """All completions have ended. ``reasons`` has one entry for each choice."""

    id: str
    reasons: tuple[Reason, ...]
    usage: Usage
    model: str
    conversation_id: str | None

    @property
    def reason(self) -> Reason:
        """How the first choice ended."""
        return self.reasons[0]


Event = Start | Waiting | Delta | Finish


@dataclass(frozen=True, slots=True)
class IndexedEvent:
    """An event of one of several parallel completions; ``index`` counts from 0."""

    index: int
    event: Event
