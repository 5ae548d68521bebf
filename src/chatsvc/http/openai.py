"""``/v1``: OpenAI's Chat Completions and Models, for clients that speak nothing else.

Shapes follow OpenAI's API reference. Knows nothing about models or tokens.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any

from flask import Blueprint, Response

from chatsvc.chat.types import Delta, Event, Finish, Usage
from chatsvc.engine.client import EngineClient
from chatsvc.errors import ChatsvcError, ModelNotFound
from chatsvc.guard.principal import scope
from chatsvc.http import problems, sse, tolerance
from chatsvc.http.chat import ChatDesk
from chatsvc.http.chat import usage as common_usage
from chatsvc.http.openai_schema import OpenAIBody
from chatsvc.http.routing import requires
from chatsvc.models.card import ModelCard


def blueprint(
    desk: ChatDesk, engine: EngineClient, *, refuses_unknown: bool, clock: Callable[[], float] = time.time
) -> Blueprint:
    """The routes. ``refuses_unknown``: a field that is not known is a 400, not ignored."""
    routes = Blueprint("openai", __name__, url_prefix="/v1")

    @routes.post("/chat/completions")
    @requires(scope("chat"))
    def chat_completions() -> Response | tuple[dict[str, Any], int, dict[str, str]]:
        body = desk.read(OpenAIBody)
        told = tolerance.headers(tolerance.ignored(body, refuses_unknown=refuses_unknown))
        chat_request = body.to_request(desk.bounds)
        if body.stream:
            encoder = ChunkEncoder(engine.card().name, int(clock()), wants_usage=body.wants_usage)
            return desk.stream(chat_request, encoder, told)
        text, finish, headers = desk.complete(chat_request)
        return completion(text, finish, int(clock())), 200, headers | told

    @routes.get("/models")
    @requires(scope("chat"))
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [model(engine.card())]}

    @routes.get("/models/<path:model_id>")
    @requires(scope("chat"))
    def one_model(model_id: str) -> dict[str, Any]:
        card = engine.card()
        if model_id != card.name:
            raise ModelNotFound
        return model(card)

    return routes


def completion(text: str, finish: Finish, created: int) -> dict[str, Any]:
    """``chat.completion``."""
    return {
        "id": f"chatcmpl-{finish.id}",
        "object": "chat.completion",
        "created": created,
        "model": finish.model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": finish.reason,
            }
        ],
        "usage": usage(finish.usage),
    }


def model(card: ModelCard) -> dict[str, Any]:
    """``model``; ``max_model_len`` is vLLM's name for the tokens that prompt and answer may have together."""
    return {
        "id": card.name,
        "object": "model",
        "created": card.created,
        "owned_by": "chatsvc",
        "max_model_len": card.context_length,
    }


def usage(counts: Usage) -> dict[str, Any]:
    """The three counts, and how many prompt tokens were found in the prefix cache."""
    return {**common_usage(counts), "prompt_tokens_details": {"cached_tokens": counts.num_cached_tokens}}


class ChunkEncoder:
    """``chat.completion.chunk`` events: the role, contents, an empty delta with the reason, usage if asked, [DONE]."""

    def __init__(self, model_name: str, created: int, *, wants_usage: bool) -> None:
        self._id = f"chatcmpl-{secrets.token_hex(16)}"
        self._model = model_name
        self._created = created
        self._wants_usage = wants_usage
        self._has_begun = False

    def encode(self, event: Event) -> bytes:
        """Chunks for an event; the first ones go out with the first piece."""
        if isinstance(event, Delta):
            return self._begin() + self._chunk({"content": event.text})
        if isinstance(event, Finish):
            end = self._begin() + self._chunk({}, finish_reason=event.reason)
            if self._wants_usage:
                end += sse.message({**self._frame([]), "usage": usage(event.usage)})
            return end + b"data: [DONE]\n\n"
        return b""

    def error(self, error: ChatsvcError) -> bytes:
        """An error object, and no [DONE]."""
        return sse.message(problems.body_of(error))

    def _begin(self) -> bytes:
        if self._has_begun:
            return b""
        self._has_begun = True
        return self._chunk({"role": "assistant", "content": ""})

    def _chunk(self, delta: dict[str, str], *, finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        # OpenAI: with include_usage every chunk has the key, null before the last.
        return sse.message({**self._frame([choice]), **({"usage": None} if self._wants_usage else {})})

    def _frame(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }
