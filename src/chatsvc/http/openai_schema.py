"""The body of ``/v1/chat/completions``: the subset of OpenAI's that is supported, wire to domain.

A field of OpenAI's that is not supported is accepted where it asks for nothing (``n: 1``, ``tools: []``), because
clients send such; anything else is a 400 that names it. Knows nothing about routes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, StrictFloat, WithJsonSchema, model_validator

from chatsvc.chat.types import ChatRequest, Message, Role, SamplingRequest
from chatsvc.http.chat_schema import (
    Bounds,
    MaxTokens,
    NonEmptyText,
    Seed,
    StopList,
    Temperature,
    TopP,
    checked_max_tokens,
    stop_strings,
)
from chatsvc.http.schema import Body, Text

Penalty = Annotated[StrictFloat, Field(ge=-2, le=2)]


def _asks_for_nothing(value: Any) -> Any:
    if value not in (None, False, 0, [], {}):
        raise ValueError("this is not supported here yet; leave it out")
    return value


def _only_text(value: Any) -> Any:
    if value not in (None, {"type": "text"}, ["text"]):
        raise ValueError("only plain text is supported here yet")
    return value


# Known to OpenAI, not to us.
Unsupported = Annotated[
    Any, AfterValidator(_asks_for_nothing), WithJsonSchema({"enum": [None, False, 0, [], {}]}), Field(default=None)
]
TextOnly = Annotated[
    Any, AfterValidator(_only_text), WithJsonSchema({"enum": [None, {"type": "text"}, ["text"]]}), Field(default=None)
]


def _stream_options_need_stream(schema: dict[str, Any]) -> None:
    schema["if"] = {"required": ["stream_options"], "properties": {"stream_options": {"type": "object"}}}
    schema["then"] = {"required": ["stream"], "properties": {"stream": {"const": True}}}


class TextPart(Body):
    """A part of a message's content; text only."""

    type: Literal["text"]
    text: Text


class StreamOptions(Body):
    """How to stream."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class OpenAIMessage(Body):
    """One turn, as OpenAI's clients write and echo it."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1)]
    name: Text | None = None
    refusal: Unsupported = None
    annotations: Unsupported = None
    audio: Unsupported = None
    tool_calls: Unsupported = None
    function_call: Unsupported = None

    def to_message(self) -> Message:
        """The domain's message; parts are joined."""
        role: Role = "system" if self.role == "developer" else self.role
        if isinstance(self.content, str):
            return Message(role, self.content)
        return Message(role, "".join(part.text for part in self.content))


class OpenAIBody(Body):
    """The request of OpenAI's Chat Completions."""

    model_config = ConfigDict(json_schema_extra=_stream_options_need_stream)

    messages: Annotated[list[OpenAIMessage], Field(min_length=1, max_length=1000)]
    model: Text | None = None
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Seed | None = None
    stop: StopList | NonEmptyText | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # harmless: they change nothing in the answer
    user: Text | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None
    metadata: Annotated[dict[Text, Text], Field(max_length=16)] | None = None
    service_tier: Literal["auto", "default"] | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None  # a Literal takes true too
    response_format: TextOnly = None
    modalities: TextOnly = None
    tool_choice: Literal["none", "auto"] | None = None
    # not supported
    audio: Unsupported = None
    function_call: Unsupported = None
    functions: Unsupported = None
    logit_bias: Unsupported = None
    logprobs: Unsupported = None
    parallel_tool_calls: bool | None = None
    prediction: Unsupported = None
    reasoning_effort: Unsupported = None
    store: Unsupported = None
    tools: Unsupported = None
    top_logprobs: Unsupported = None
    verbosity: Unsupported = None
    web_search_options: Unsupported = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only together with 'stream': true")
        return self

    @property
    def wants_usage(self) -> bool:
        """Whether the stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def to_request(self, bounds: Bounds) -> ChatRequest:
        """The domain's request; it is not kept in a conversation.

        Raises:
            InvalidRequest: more tokens than the configured cap.
        """
        given = (
            checked_max_tokens(self.max_tokens, bounds, "max_tokens"),
            checked_max_tokens(self.max_completion_tokens, bounds, "max_completion_tokens"),
        )
        return ChatRequest(
            messages=tuple(message.to_message() for message in self.messages),
            # the old name and the new one; of both the tighter holds
            max_tokens=min((number for number in given if number is not None), default=None),
            sampling=SamplingRequest(
                temperature=self.temperature,
                top_p=self.top_p,
                presence_penalty=self.presence_penalty or 0.0,
                frequency_penalty=self.frequency_penalty or 0.0,
                seed=self.seed,
            ),
            stop=stop_strings(self.stop),
            model=self.model,
            keep=False,
        )
