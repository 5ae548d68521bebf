"""``/v1/completions``: OpenAI's older API, for clients that write their prompts themselves.

A prompt has no roles, and no text in it becomes one; the operator's system text goes before it. Shapes follow OpenAI's
API reference. Knows nothing about models or tokens.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from flask import Blueprint, Response

from chatsvc.chat.types import Choice, Delta, Finish, Usage
from chatsvc.engine.client import EngineClient
from chatsvc.errors import ChatsvcError
from chatsvc.guard.principal import scope
from chatsvc.http import problems, sse, tolerance
from chatsvc.http.chat import ChatDesk
from chatsvc.http.completions_schema import CompletionBody
from chatsvc.http.openai import usage
from chatsvc.http.routing import requires


def blueprint(
    desk: ChatDesk, engine: EngineClient, *, refuses_unknown: bool, clock: Callable[[], float] = time.time
) -> Blueprint:
    """The route. ``refuses_unknown``: a field that is not known is a 400, not ignored."""
    routes = Blueprint("completions", __name__, url_prefix="/v1")

    @routes.post("/completions")
    @requires(scope("chat"))
    def completions() -> Response | tuple[dict[str, Any], int, dict[str, str]]:
        body = desk.read(CompletionBody)
        told = tolerance.headers(tolerance.ignored(body, refuses_unknown=refuses_unknown))
        requests = body.to_requests(desk.bounds)
        echoes = [desk.service.planner.text_of(prompt) if body.echo else "" for prompt in body.prompts()]
        if body.stream:
            encoder = TextEncoder(engine.card().name, int(clock()), echoes, wants_usage=body.wants_usage)
            return desk.stream_all(requests, encoder, told)
        done, headers = desk.complete_all(requests)
        texts = [(echo + text, finish) for echo, (text, finish) in zip(echoes, done, strict=True)]
        return text_completion(texts, int(clock())), 200, headers | told

    return routes


def text_completion(done: Sequence[tuple[str, Finish]], created: int) -> dict[str, Any]:
    """``text_completion``."""
    return {
        "id": f"cmpl-{done[0][1].id}",
        "object": "text_completion",
        "created": created,
        "model": done[0][1].model,
        "choices": [text_choice(index, text, finish.reason) for index, (text, finish) in enumerate(done)],
        "usage": usage(_sum([finish.usage for _, finish in done])),
    }


def text_choice(index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    """One of ``choices``."""
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}


def _sum(usages: Sequence[Usage]) -> Usage:
    return Usage(
        sum(one.num_prompt_tokens for one in usages),
        sum(one.num_completion_tokens for one in usages),
        sum(one.num_cached_tokens for one in usages),
    )


class TextEncoder:
    """Chunks of ``text_completion``: texts, an empty one with the reason for each prompt, usage if asked, [DONE]."""

    def __init__(self, model_name: str, created: int, echoes: Sequence[str], *, wants_usage: bool) -> None:
        self._frame = {
            "id": f"cmpl-{secrets.token_hex(16)}",
            "object": "text_completion",
            "created": created,
            "model": model_name,
        }
        self._echoes = dict(enumerate(echoes))
        self._wants_usage = wants_usage
        self._usages: list[Usage] = []
        self._num_prompts = len(echoes)

    def encode(self, choice: Choice) -> bytes:
        """Chunks for what happens to a prompt."""
        event = choice.event
        if isinstance(event, Delta):
            return self._chunk(choice.index, self._echoes.pop(choice.index, "") + event.text)
        if isinstance(event, Finish):
            end = self._chunk(choice.index, self._echoes.pop(choice.index, ""), event.reason)
            self._usages.append(event.usage)
            return end + (self._end() if len(self._usages) == self._num_prompts else b"")
        return b""

    def error(self, error: ChatsvcError) -> bytes:
        """An error object, and no [DONE]."""
        return sse.message(problems.body_of(error))

    def _chunk(self, index: int, text: str, finish_reason: str | None = None) -> bytes:
        # OpenAI: with include_usage every chunk has the key, null before the last.
        without_usage = {"usage": None} if self._wants_usage else {}
        return sse.message({**self._frame, "choices": [text_choice(index, text, finish_reason)], **without_usage})

    def _end(self) -> bytes:
        counts = {**self._frame, "choices": [], "usage": usage(_sum(self._usages))}
        return (sse.message(counts) if self._wants_usage else b"") + b"data: [DONE]\n\n"
