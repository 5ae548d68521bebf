"""The domain's nouns between the wire and the engine. Knows nothing about JSON or tokens' texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Reason = Literal["stop", "length"]
Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a function that an assistant asked for; ``arguments`` is JSON as the model wrote it, not checked."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. No text in it can become a role boundary.

    Attributes:
        role: who speaks.
        content: plain text; may be empty where there are ``tool_calls``.
        tool_calls: only of an ``assistant``.
        tool_call_id, name: only of a ``tool``: which call it answers, and of which function. Both may be unknown.
    """

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class SamplingRequest:
    """How the caller wants tokens chosen; names and meanings are those of ``/v1``.

    None in the first five: the model's own default, else the configured one.

    Attributes:
        temperature: 0 always takes the most probable token.
        top_p: in (0, 1], the probability that the candidates have together.
        top_k: most candidates; 0 or less sets no bound.
        min_p: in [0, 1], a candidate's least probability, as a share of the most probable one's.
        repetition_penalty: above 0; above 1 makes tokens of the prompt and the completion less likely.
        presence_penalty, frequency_penalty: -2 to 2, subtracted from the logits of tokens of the completion.
        logit_bias: token id to a number from -100 to 100 that is added to its logit.
        seed: the same seed gives the same answer; choice ``i`` of several uses ``seed + i``.
        min_tokens: before so many tokens neither an end-of-sequence token nor a stop string ends the completion.
        ignore_eos: an end-of-sequence token does not end the completion.
        num_logprobs: alternatives to report for each token; 0 reports the chosen token alone, None nothing.
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


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request that has passed the schema: every bound on size and range already holds.

    Attributes:
        messages: the new turns.
        prompt: a text or token ids to go on from, as they are: without messages, roles and a template.
        max_tokens: of each choice; None: the configured default, or what the context has room for if that is less.
        sampling: how tokens are chosen.
        stop: strings that end a completion and are not shown.
        num_choices: how many completions of the same prompt (OpenAI's ``n``).
        continues_final_message: the last message is the beginning of the answer, and stays open.
        opens_answer: the prompt ends with the beginning of the assistant's turn (``add_generation_prompt``).
        conversation_id: the caller's conversation that the turns belong to.
        model: the name of the model that was asked for.
        keep: the turn is stored in a conversation of the caller's.
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
    """Token counts of one completion; ``num_prompt_tokens`` counts the rendered template."""

    num_prompt_tokens: int
    num_completion_tokens: int
    num_cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Start:
    """The request is admitted: the id of the answer, where it will be kept, and by which model it is made."""

    id: str
    conversation_id: str | None
    model: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing new yet: a chance to keep the line alive. ``position`` counts from 1, and is 0 in the engine."""

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
    """A piece of a completion; never ends inside a character.

    Attributes:
        text: empty only where there are scored tokens at the end of a completion.
        index: of which choice, where there are several.
        scored: the tokens since the last piece, where log-probabilities were asked for.
    """

    text: str
    index: int = 0
    scored: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of all completions. ``reasons`` has one entry for each choice; ``reason`` is the first one's."""

    id: str
    reasons: tuple[Reason, ...]
    usage: Usage
    model: str
    conversation_id: str | None

    @property
    def reason(self) -> Reason:
        """How the first, and mostly only, choice ended."""
        return self.reasons[0]


Event = Start | Waiting | Delta | Finish


@dataclass(frozen=True, slots=True)
class Choice:
    """What happens in one of several completions that are made at the same time; ``index`` counts from 0."""

    index: int
    event: Event
