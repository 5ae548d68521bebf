"""``/v1``: OpenAI's Chat Completions and Models, for clients that speak nothing else.

Shapes follow OpenAI's API reference. Knows nothing about models or tokens.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from flask import Blueprint, Response

from chatsvc.chat.service import Whole
from chatsvc.chat.types import Delta, Event, Finish, ScoredToken, Usage
from chatsvc.engine.web_side.client import EngineClient
from chatsvc.errors import ChatsvcError, ModelNotFound
from chatsvc.guard.principal import scope
from chatsvc.http.api.chat import ChatDesk
from chatsvc.http.api.chat import usage as common_usage
from chatsvc.http.api.openai import tolerance
from chatsvc.http.api.openai.chat_schema import OpenAIBody
from chatsvc.http.wire import problems, sse
from chatsvc.http.wire.routing import requires
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
            encoder = ChunkEncoder(engine.card().name, int(clock()), body)
            return desk.stream(chat_request, encoder, told)
        wholes, finish, headers = desk.complete(chat_request)
        return completion(wholes, finish, int(clock()), scored=body.logprobs), 200, headers | told

    @routes.get("/models")
    @requires(scope("chat"))
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [model(engine.card())]}

    @routes.get("/models/<path:model_id>")
    @requires(scope("chat"))
    def one_model(model_id: str) -> dict[str, Any]:
        card = engine.card()
        # a path converter takes the trailing slash too, which is the same route everywhere
        if model_id.removesuffix("/") != card.name:
            raise ModelNotFound
        return model(card)

    return routes


def completion(wholes: Sequence[Whole], finish: Finish, created: int, *, scored: bool | None) -> dict[str, Any]:
    """``chat.completion``; ``scored``: log-probabilities were asked for."""
    return {
        "id": f"chatcmpl-{finish.id}",
        "object": "chat.completion",
        "created": created,
        "model": finish.model,
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": whole.text, "refusal": None},
                "logprobs": logprobs(whole.scored) if scored else None,
                "finish_reason": reason,
            }
            for index, (whole, reason) in enumerate(zip(wholes, finish.reasons, strict=True))
        ],
        "usage": usage(finish.usage),
    }


def logprobs(scored: Sequence[ScoredToken]) -> dict[str, Any]:
    """A choice's ``logprobs``: natural logarithms, of the model's distribution before temperature and penalties."""
    content = [
        {**_token(one), "top_logprobs": [_token(alternative) for alternative in one.alternatives]} for one in scored
    ]
    return {"content": content, "refusal": None}


def _token(one: ScoredToken) -> dict[str, Any]:
    """``bytes`` joined are the text; ``token`` may show U+FFFD for a part of a character."""
    return {"token": one.data.decode("utf-8", "replace"), "bytes": list(one.data), "logprob": one.logprob}


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

    def __init__(self, model_name: str, created: int, body: OpenAIBody) -> None:
        self._id = f"chatcmpl-{secrets.token_hex(16)}"
        self._model = model_name
        self._created = created
        self._wants_usage = body.wants_usage
        self._wants_logprobs = bool(body.logprobs)
        self._begun: set[int] = set()

    def encode(self, event: Event) -> bytes:
        """Chunks for an event; the first one of a choice goes out with its first piece."""
        if isinstance(event, Delta):
            scored = logprobs(event.scored) if self._wants_logprobs else None
            return self._begin(event.index) + self._chunk(event.index, {"content": event.text}, scored=scored)
        if isinstance(event, Finish):
            end = b"".join(
                self._begin(index) + self._chunk(index, {}, finish_reason=reason)
                for index, reason in enumerate(event.reasons)
            )
            if self._wants_usage:
                end += sse.message({**self._frame([]), "usage": usage(event.usage)})
            return end + b"data: [DONE]\n\n"
        return b""

    def error(self, error: ChatsvcError) -> bytes:
        """An error object, and no [DONE]."""
        return sse.message(problems.body_of(error))

    def _begin(self, index: int) -> bytes:
        if index in self._begun:
            return b""
        self._begun.add(index)
        return self._chunk(index, {"role": "assistant", "content": ""})

    def _chunk(
        self,
        index: int,
        delta: dict[str, str],
        *,
        scored: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": scored, "finish_reason": finish_reason}
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
