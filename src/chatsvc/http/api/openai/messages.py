"""The messages of ``/v1/chat/completions``, as OpenAI's clients write and echo them: wire to domain.

Clients send an assistant's message back with everything they keep of an answer (``content: null``, ``refusal``,
``annotations``, ``reasoning_content``, ``tool_calls``, ``id``). Knows nothing about routes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from chatsvc.chat.types import Message, Role, ToolCall
from chatsvc.http.api.chat_schema import NonEmptyText
from chatsvc.http.api.openai.tolerance import Hint, Tolerant, Unsupported
from chatsvc.http.wire.schema import Text

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_ANSWERS_OF_TOOLS = {"tool", "function"}
_OTHER_MEDIA = {
    "image_url": "an image",
    "input_image": "an image",
    "image": "an image",
    "input_audio": "audio",
    "audio_url": "audio",
    "audio": "audio",
    "video_url": "a video",
    "file": "a file",
    "input_file": "a file",
}


def _only_text(kind: object) -> object:
    if isinstance(kind, str) and kind in _OTHER_MEDIA:
        raise ValueError(f"the model reads text only, and this part is {_OTHER_MEDIA[kind]}; leave it out")
    return kind


class ContentPart(Tolerant):
    """A part of a message's content; text only. A refusal's text is in ``refusal``."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"type": {"const": "refusal"}}},
            "then": {"required": ["refusal"], "properties": {"refusal": {"type": "string"}}},
            "else": {"required": ["text"], "properties": {"text": {"type": "string"}}},
        }
    )

    type: Annotated[Literal["text", "input_text", "output_text", "refusal"], BeforeValidator(_only_text)]
    text: Text | None = None
    refusal: Text | None = None

    @model_validator(mode="after")
    def _has_text(self) -> Self:
        name = "refusal" if self.type == "refusal" else "text"
        if getattr(self, name) is None:
            raise ValueError(f"{name}: Field required")
        return self

    @property
    def written(self) -> str:
        """What it says."""
        return (self.refusal if self.type == "refusal" else self.text) or ""


class CalledFunction(Tolerant):
    """Which function, and its arguments: JSON as the model wrote it."""

    name: NonEmptyText
    arguments: Text | None = None


class CalledTool(Tolerant):
    """A tool that takes free text, and that text."""

    name: NonEmptyText
    input: Text | None = None


class FunctionCall(Tolerant):
    """A call that an assistant asked for."""

    id: Text | None = None
    type: Literal["function"] | None = None
    function: CalledFunction

    def to_call(self) -> ToolCall:
        """The domain's call."""
        return ToolCall(self.id or "", self.function.name, self.function.arguments or "")


class CustomCall(Tolerant):
    """A call of a tool that takes free text."""

    id: Text | None = None
    type: Literal["custom"]
    custom: CalledTool

    def to_call(self) -> ToolCall:
        """The domain's call."""
        return ToolCall(self.id or "", self.custom.name, self.custom.input or "")


def _kind_of_call(call: object) -> str:
    """Which member of the union is meant: a function where the type is left out."""
    kind = call.get("type") if isinstance(call, dict) else None
    return "CustomCall" if kind == "custom" else "FunctionCall"


ToolCalled = Annotated[
    Annotated[FunctionCall, Tag("FunctionCall")] | Annotated[CustomCall, Tag("CustomCall")],
    Discriminator(_kind_of_call),
]


def _what_each_role_needs(schema: dict[str, Any]) -> None:
    schema["if"] = {"required": ["role"], "properties": {"role": {"const": "assistant"}}}
    written = {"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1}]}
    nothing = {"type": "null"}
    schema["else"] = {
        "required": ["content"],
        "properties": {"content": written, "tool_calls": nothing, "function_call": nothing},
    }


class OpenAIMessage(Tolerant):
    """A message."""

    model_config = ConfigDict(json_schema_extra=_what_each_role_needs)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | Annotated[list[ContentPart], Field(fail_fast=True)] | None = None
    tool_calls: Annotated[list[ToolCalled], Field(fail_fast=True)] | None = None
    function_call: CalledFunction | None = None
    tool_call_id: Text | None = None
    name: Text | None = None
    refusal: Text | None = None
    audio: Unsupported = None
    annotations: Hint = None
    id: Hint = None
    reasoning: Hint = None
    reasoning_content: Hint = None

    @model_validator(mode="after")
    def _fits_its_role(self) -> Self:
        if self.role == "assistant":
            return self
        if self.content is None or self.content == []:
            raise ValueError("content: a message of this role needs text")
        for name in ("tool_calls", "function_call"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name}: only an assistant's message has it")
        return self

    def ignored_fields(self) -> set[str]:
        """``name`` is read only of tools' answers, ``refusal`` only of the assistant's."""
        unread = {
            "name": self.role not in _ANSWERS_OF_TOOLS,
            "tool_call_id": self.role not in _ANSWERS_OF_TOOLS,
            "refusal": self.role != "assistant",
        }
        return super().ignored_fields() | {name for name in self.model_fields_set if unread.get(name)}

    def to_message(self) -> Message:
        """The domain's message; parts are joined."""
        answers_tool = self.role in _ANSWERS_OF_TOOLS
        return Message(
            role=_ROLES[self.role],
            content=self._text(),
            tool_calls=self._calls(),
            tool_call_id=self.tool_call_id if answers_tool else None,
            name=self.name if answers_tool else None,
        )

    def _text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        if self.content:
            return "".join(part.written for part in self.content)
        return (self.refusal or "") if self.role == "assistant" else ""

    def _calls(self) -> tuple[ToolCall, ...]:
        calls = tuple(call.to_call() for call in self.tool_calls or ())
        if self.function_call is not None:  # the older form, of one call without an id
            calls += (ToolCall("", self.function_call.name, self.function_call.arguments or ""),)
        return calls
