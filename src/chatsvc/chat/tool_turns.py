"""Turns in the form that chat templates take, with tool calls and their results. Knows nothing about rendering.

A template that supports tools gets them as transformers passes them. For other templates they become text, in the form
of the Hermes models, which many models understand::

    assistant: …<tool_call>{"name": …, "arguments": …}</tool_call>
    user:      <tool_response>…</tool_response>
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from chatsvc.chat.types import Message, ToolCall

_MAX_DEPTH = 64


def for_template(message: Message, guard: Callable[[str], str]) -> dict[str, Any]:
    """The message as transformers passes it to a template; ``guard`` is applied to every text of the caller.

    Arguments are an object if they are valid JSON, else text.
    """
    given: dict[str, Any] = {"role": message.role, "content": guard(message.content)}
    if message.tool_calls:
        given["tool_calls"] = [
            {
                "id": guard(call.id),
                "type": "function",
                "function": {"name": guard(call.name), "arguments": _map_texts(_arguments(call), guard)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        given["tool_call_id"] = guard(message.tool_call_id)
    if message.name is not None:
        given["name"] = guard(message.name)
    return given


def as_text(messages: Sequence[Message]) -> list[Message]:
    """The conversation with tool calls as text of the assistant, and their results as text of the user.

    A user's message after a tool's result is joined to it, because many templates require alternating roles.
    """
    made: list[Message] = []
    follows_tool = False
    for message in messages:
        turn = _text_turn(message)
        if follows_tool and turn.role == "user":
            made[-1] = Message("user", f"{made[-1].content}\n{turn.content}")
        else:
            made.append(turn)
        follows_tool = message.role == "tool"
    return made


def _text_turn(message: Message) -> Message:
    if message.role == "tool":
        return Message("user", f"<tool_response>\n{message.content}\n</tool_response>")
    return Message(message.role, with_calls(message))


def with_calls(message: Message) -> str:
    """An assistant's message with its tool calls, as text."""
    calls = [_call_text(call) for call in message.tool_calls]
    return "\n".join([message.content, *calls] if message.content or not calls else calls)


def _call_text(call: ToolCall) -> str:
    content = msgspec.json.encode({"name": call.name, "arguments": _arguments(call)}).decode()
    return f"<tool_call>\n{content}\n</tool_call>"


def _arguments(call: ToolCall) -> Any:
    try:
        parsed = msgspec.json.decode(call.arguments)
    except (msgspec.DecodeError, RecursionError):
        return call.arguments
    return parsed if isinstance(parsed, dict) and _is_shallow(parsed) else call.arguments


def _is_shallow(value: Any) -> bool:
    """Whether recursion over the value is safe; real arguments are never deeper."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        nested = [one for one in level if isinstance(one, dict | list)]
        level = [inner for one in nested for inner in (one.values() if isinstance(one, dict) else one)]
        if not level:
            return True
    return False


def _map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """The value with ``change`` applied to every text in it, also to keys."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_map_texts(key, change): _map_texts(one, change) for key, one in value.items()}
    if isinstance(value, list):
        return [_map_texts(one, change) for one in value]
    return value
