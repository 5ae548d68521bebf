"""Step 4 of ``/chat`` and ``/chat/stream``: the body, from wire to domain, and its limits. Knows no routes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, StrictFloat, model_validator

from chatsvc.chat.types import ChatRequest, Message, SamplingRequest
from chatsvc.errors import InvalidRequest
from chatsvc.http.wire.schema import Body, Text

NonEmptyText = Annotated[Text, Field(min_length=1)]
Temperature = Annotated[StrictFloat, Field(ge=0, le=2, description="0 takes the most likely token each time.")]
TopP = Annotated[
    StrictFloat,
    Field(gt=0, le=1, description="Sample only from the most likely tokens whose probabilities add up to this."),
]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63, description="Makes sampling repeatable.")]
MaxTokens = Annotated[int, Field(ge=1, description="The longest answer, in tokens.")]
StopList = Annotated[list[NonEmptyText], Field(min_length=1, max_length=4)]
# (pydantic's patterns are Rust's: $ is the very end.) An unknown id is 404; one that cannot be an id is 400.
ConversationId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Configured bounds of a request."""

    max_tokens_cap: int = 4096


class ChatMessage(Body):
    """A message."""

    role: Literal["system", "user", "assistant"]
    content: Text


def _one_of(schema: dict[str, Any]) -> None:
    null = {"type": "null"}
    schema["oneOf"] = [
        {"required": ["query"], "properties": {"query": {"type": "string"}, "messages": null}},
        {"required": ["messages"], "properties": {"messages": {"type": "array"}, "query": null}},
    ]


class ChatBody(Body):
    """Exactly one of ``query`` and ``messages``."""

    model_config = ConfigDict(json_schema_extra=_one_of)

    query: NonEmptyText | None = Field(
        None, description="One message of the user.", examples=["What is the capital of France?"]
    )
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1000, fail_fast=True)] | None = None
    system: Text | None = Field(None, description="A system message, put before the others.")
    conversation_id: ConversationId | None = Field(None, description="The conversation to continue.")
    max_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Seed | None = None
    stop: StopList | NonEmptyText | None = Field(None, description="Texts that end the answer.")

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if self.query is None and self.messages is None:
            raise ValueError("query: send 'query' or 'messages'")
        if self.query is not None and self.messages is not None:
            raise ValueError("messages: send either 'query' or 'messages', not both")
        return self

    def to_request(self, bounds: Bounds) -> ChatRequest:
        """The domain's request.

        Raises:
            InvalidRequest: more tokens than the configured cap.
        """
        messages = [] if self.system is None else [Message("system", self.system)]
        if self.query is not None:
            messages.append(Message("user", self.query))
        messages += [Message(message.role, message.content) for message in self.messages or ()]
        return ChatRequest(
            messages=tuple(messages),
            max_tokens=checked_max_tokens(self.max_tokens, bounds, "max_tokens"),
            sampling=SamplingRequest(temperature=self.temperature, top_p=self.top_p, seed=self.seed),
            stop=stop_strings(self.stop),
            conversation_id=self.conversation_id,
        )


def checked_max_tokens(max_tokens: int | None, bounds: Bounds, param: str) -> int | None:
    """The value, if the configured cap allows it.

    Raises:
        InvalidRequest: it does not.
    """
    if max_tokens is not None and max_tokens > bounds.max_tokens_cap:
        raise InvalidRequest(f"{param}: at most {bounds.max_tokens_cap} here.", param=param, code="invalid_value")
    return max_tokens


def stop_strings(stop: list[str] | str | None) -> tuple[str, ...]:
    """One or several, as the wire allows both."""
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)
