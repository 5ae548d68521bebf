"""``/v1/completions``: OpenAI's older API, for clients that write their prompts themselves.

A prompt has no roles, and its text is never read as a role marker; the operator's system prompt goes before it. The
JSON follows OpenAI's API reference. Knows nothing about models or tokens.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypedDict

from flask import Response

from chatsvc.chat.service import WholeChoice
from chatsvc.chat.types import Delta, Finish, IndexedEvent, Reason, ScoredToken, Usage
from chatsvc.errors import ChatsvcError
from chatsvc.guard.principal import scope
from chatsvc.http.api.chat import ChatAccess
from chatsvc.http.api.openai import tolerance
from chatsvc.http.api.openai.chat import OpenAIUsage, usage
from chatsvc.http.api.openai.completions_schema import CompletionBody
from chatsvc.http.wire import problems, sse
from chatsvc.http.wire.routing import Operation, like, requires, route


class TextLogprobs(TypedDict):
    """One entry for each token; the offsets count characters."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(TypedDict):
    """One of the texts; the choices of the first prompt come first."""

    index: Annotated[int, like(0)]
    text: Annotated[str, like(" Paris.")]
    logprobs: Annotated[TextLogprobs | None, like(None)]
    finish_reason: Annotated[Reason, like("length")]


class TextCompletion(TypedDict):
    """OpenAI's ``text_completion``."""

    id: Annotated[str, like("cmpl-9c1185a5c5e9fc54612808977ee8f548")]
    object: Literal["text_completion"]
    created: Annotated[int, like(1_767_225_600)]
    model: Annotated[str, like("Qwen1.5-0.5B-Chat")]
    choices: list[TextChoice]
    usage: OpenAIUsage


_CHUNKS = """\
data: {"id":"cmpl-9c1185a5","object":"text_completion","created":1767225600,"model":"Qwen1.5-0.5B-Chat","choices":[{"index":0,"text":" Paris.","logprobs":null,"finish_reason":null}]}

data: {"id":"cmpl-9c1185a5","object":"text_completion","created":1767225600,"model":"Qwen1.5-0.5B-Chat","choices":[{"index":0,"text":"","logprobs":null,"finish_reason":"length"}]}

data: [DONE]

"""  # noqa: E501


@dataclass(frozen=True, slots=True)
class CompletionViews:
    """The view, and what it needs. ``refuses_unknown``: an unknown field is a 400 instead of being ignored."""

    TAG: ClassVar = "openai"

    access: ChatAccess
    refuses_unknown: bool
    clock: Callable[[], float] = time.time

    @route("POST", "/v1/completions")
    @requires(scope("chat"))
    @Operation(body=CompletionBody, answer=TextCompletion, texts={"text/event-stream": _CHUNKS}, errors=(404, 429))
    def completions(self) -> Response | tuple[TextCompletion, int, dict[str, str]]:
        """OpenAI's Completions: continue a text, without roles.

        With `stream`, the answer is OpenAI's chunks, then `data: [DONE]`.
        """
        body = self.access.read(CompletionBody)
        told = tolerance.headers(tolerance.ignored(body, refuses_unknown=self.refuses_unknown))
        requests = body.to_requests(self.access.bounds)
        echoes = [self.access.service.planner.text_of(prompt) if body.echo else "" for prompt in body.prompts()]
        if body.stream:
            encoder = TextEncoder(self.access.service.engine.card().name, int(self.clock()), echoes, body)
            return self.access.stream_all(requests, encoder, told)
        done, headers = self.access.complete_all(requests)
        return text_completion(done, echoes, int(self.clock()), body), 200, headers | told


def text_completion(
    done: Sequence[tuple[Sequence[WholeChoice], Finish]], echoes: Sequence[str], created: int, body: CompletionBody
) -> TextCompletion:
    """The whole answer."""
    choices: list[TextChoice] = []
    for echo, (wholes, finish) in zip(echoes, done, strict=True):
        for whole, reason in zip(wholes, finish.reasons, strict=True):
            scored = logprobs(whole.scored, len(echo)) if body.logprobs is not None else None
            choices.append(
                {"index": len(choices), "text": echo + whole.text, "logprobs": scored, "finish_reason": reason}
            )
    return {
        "id": f"cmpl-{done[0][1].id}",
        "object": "text_completion",
        "created": created,
        "model": done[0][1].model,
        "choices": choices,
        "usage": usage(_sum([finish.usage for _, finish in done])),
    }


def logprobs(scored: Sequence[ScoredToken], offset: int) -> TextLogprobs:
    """A choice's ``logprobs``; the first token is at ``offset`` of the text. An echoed prompt has none."""
    shown = [one.data.decode("utf-8", "replace") for one in scored]
    return {
        "tokens": shown,
        "token_logprobs": [one.logprob for one in scored],
        "top_logprobs": [
            {other.data.decode("utf-8", "replace"): other.logprob for other in one.alternatives} for one in scored
        ],
        "text_offset": list(itertools.accumulate(map(len, shown[:-1]), initial=offset)) if shown else [],
    }


def _sum(usages: Sequence[Usage]) -> Usage:
    return Usage(
        sum(one.num_prompt_tokens for one in usages),
        sum(one.num_completion_tokens for one in usages),
        sum(one.num_cached_tokens for one in usages),
    )


class TextEncoder:
    """Chunks of ``text_completion``: texts, an empty one with the reason for each prompt, usage if asked, [DONE]."""

    def __init__(self, model_name: str, created: int, echoes: Sequence[str], body: CompletionBody) -> None:
        self._frame = {
            "id": f"cmpl-{secrets.token_hex(16)}",
            "object": "text_completion",
            "created": created,
            "model": model_name,
        }
        self._num_choices = body.n or 1
        self._echoes = {
            place * self._num_choices + index: echo
            for place, echo in enumerate(echoes)
            for index in range(self._num_choices)
        }
        self._offsets = {index: len(echo) for index, echo in self._echoes.items()}
        self._wants_logprobs = body.logprobs is not None
        self._wants_usage = body.wants_usage
        self._usages: list[Usage] = []
        self._num_prompts = len(echoes)

    def encode(self, choice: IndexedEvent) -> bytes:
        """Chunks for an event of a prompt."""
        event, first = choice.event, choice.index * self._num_choices
        if isinstance(event, Delta):
            return self._piece(first + event.index, event)
        if isinstance(event, Finish):
            end = b"".join(
                self._chunk(index, self._echoes.pop(index, ""), reason)
                for index, reason in enumerate(event.reasons, start=first)
            )
            self._usages.append(event.usage)
            return end + (self._end() if len(self._usages) == self._num_prompts else b"")
        return b""

    def error(self, error: ChatsvcError) -> bytes:
        """An error object, and no [DONE]."""
        return sse.message(problems.body_of(error))

    def _piece(self, index: int, piece: Delta) -> bytes:
        scored = logprobs(piece.scored, self._offsets[index]) if self._wants_logprobs else None
        if scored is not None:
            self._offsets[index] += sum(map(len, scored["tokens"]))
        return self._chunk(index, self._echoes.pop(index, "") + piece.text, scored=scored)

    def _chunk(
        self, index: int, text: str, finish_reason: str | None = None, scored: TextLogprobs | None = None
    ) -> bytes:
        # OpenAI: with include_usage every chunk has the key, null before the last.
        without_usage = {"usage": None} if self._wants_usage else {}
        choice = {"index": index, "text": text, "logprobs": scored, "finish_reason": finish_reason}
        return sse.message({**self._frame, "choices": [choice], **without_usage})

    def _end(self) -> bytes:
        counts = {**self._frame, "choices": [], "usage": usage(_sum(self._usages))}
        return (sse.message(counts) if self._wants_usage else b"") + b"data: [DONE]\n\n"
