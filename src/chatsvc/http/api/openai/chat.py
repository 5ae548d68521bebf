"""``/v1``: OpenAI's Chat Completions and Models, for OpenAI's clients.

The JSON follows OpenAI's API reference. Knows nothing about models or tokens.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypedDict

from flask import Response

from chatsvc.chat.service import WholeChoice
from chatsvc.chat.types import Delta, Event, Finish, Reason, ScoredToken, Usage
from chatsvc.errors import ChatsvcError, ModelNotFound
from chatsvc.guard.principal import scope
from chatsvc.http.api.chat import ChatAccess, UsageAnswer
from chatsvc.http.api.chat import usage as common_usage
from chatsvc.http.api.openai import tolerance
from chatsvc.http.api.openai.chat_schema import OpenAIBody
from chatsvc.http.wire import problems, sse
from chatsvc.http.wire.routing import Operation, like, requires, route
from chatsvc.models.card import ModelCard


class CachedTokens(TypedDict):
    """How many tokens of the prompt were found in the prefix cache."""

    cached_tokens: Annotated[int, like(0)]


class OpenAIUsage(UsageAnswer):
    """Token counts, and how many prompt tokens were found in the prefix cache."""

    prompt_tokens_details: CachedTokens


class Token(TypedDict):
    """``bytes`` joined are the text; ``token`` may show U+FFFD for a part of a character."""

    token: Annotated[str, like("Paris")]
    bytes: list[Annotated[int, like(80)]]
    logprob: Annotated[float, like(-0.31)]


class ChosenToken(Token):
    """A token of the answer, and the most likely alternatives at its position."""

    top_logprobs: list[Token]


class Logprobs(TypedDict):
    """Natural logarithms, of the model's distribution before temperature and penalties."""

    content: list[ChosenToken]
    refusal: None


class AssistantMessage(TypedDict):
    """The answer's text."""

    role: Literal["assistant"]
    content: Annotated[str, like("Paris")]
    refusal: None


class ChatChoice(TypedDict):
    """One of `n` answers."""

    index: Annotated[int, like(0)]
    message: AssistantMessage
    logprobs: Annotated[Logprobs | None, like(None)]
    finish_reason: Annotated[Reason, like("stop")]


class Completion(TypedDict):
    """OpenAI's ``chat.completion``."""

    id: Annotated[str, like("chatcmpl-9c1185a5c5e9fc54612808977ee8f548")]
    object: Literal["chat.completion"]
    created: Annotated[int, like(1_767_225_600)]
    model: Annotated[str, like("Qwen1.5-0.5B-Chat")]
    choices: list[ChatChoice]
    usage: OpenAIUsage


class ModelAnswer(TypedDict):
    """OpenAI's ``model``. ``max_model_len`` is vLLM's name for the maximum of prompt and answer tokens together."""

    id: Annotated[str, like("Qwen1.5-0.5B-Chat")]
    object: Literal["model"]
    created: Annotated[int, like(1_767_225_600)]
    owned_by: Annotated[str, like("chatsvc")]
    max_model_len: Annotated[int, like(32_768)]


class ModelPage(TypedDict):
    """OpenAI's list of models."""

    object: Literal["list"]
    data: list[ModelAnswer]


_CHUNKS = """\
data: {"id":"chatcmpl-9c1185a5","object":"chat.completion.chunk","created":1767225600,"model":"Qwen1.5-0.5B-Chat","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}

data: {"id":"chatcmpl-9c1185a5","object":"chat.completion.chunk","created":1767225600,"model":"Qwen1.5-0.5B-Chat","choices":[{"index":0,"delta":{"content":"Paris"},"logprobs":null,"finish_reason":null}]}

data: {"id":"chatcmpl-9c1185a5","object":"chat.completion.chunk","created":1767225600,"model":"Qwen1.5-0.5B-Chat","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]}

data: [DONE]

"""  # noqa: E501


@dataclass(frozen=True, slots=True)
class OpenAIViews:
    """The views, and what they need. ``refuses_unknown``: an unknown field is a 400 instead of being ignored."""

    TAG: ClassVar = "openai"

    access: ChatAccess
    refuses_unknown: bool
    clock: Callable[[], float] = time.time

    @route("POST", "/v1/chat/completions")
    @requires(scope("chat"))
    @Operation(body=OpenAIBody, answer=Completion, texts={"text/event-stream": _CHUNKS}, errors=(404, 429))
    def chat_completions(self) -> Response | tuple[Completion, int, dict[str, str]]:
        """OpenAI's Chat Completions.

        With `stream`, the answer is OpenAI's chunks, then `data: [DONE]`; an error in mid-stream is
        `data: {"error":{…}}` and ends the stream. The header `x-ignored-parameters` names fields that change nothing
        and unknown fields.
        """
        body = self.access.read(OpenAIBody)
        told = tolerance.headers(tolerance.ignored(body, refuses_unknown=self.refuses_unknown))
        chat_request = body.to_request(self.access.bounds)
        if body.stream:
            encoder = ChunkEncoder(self.access.service.engine.card().name, int(self.clock()), body)
            return self.access.stream(chat_request, encoder, told)
        wholes, finish, headers = self.access.complete(chat_request)
        return completion(wholes, finish, int(self.clock()), scored=body.logprobs), 200, headers | told

    @route("GET", "/v1/models")
    @requires(scope("chat"))
    @Operation(answer=ModelPage)
    def models(self) -> ModelPage:
        """List the served models."""
        return {"object": "list", "data": [model(self.access.service.engine.card())]}

    @route("GET", "/v1/models/<path:model_id>")
    @requires(scope("chat"))
    @Operation(answer=ModelAnswer, path={"model_id": "Qwen1.5-0.5B-Chat"})
    def one_model(self, model_id: str) -> ModelAnswer:
        """Read a model."""
        card = self.access.service.engine.card()
        # a path converter takes the trailing slash too, which is the same route everywhere
        if model_id.removesuffix("/") != card.name:
            raise ModelNotFound
        return model(card)


def completion(wholes: Sequence[WholeChoice], finish: Finish, created: int, *, scored: bool | None) -> Completion:
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


def logprobs(scored: Sequence[ScoredToken]) -> Logprobs:
    """A choice's ``logprobs``."""
    content: list[ChosenToken] = [
        {**_token(one), "top_logprobs": [_token(alternative) for alternative in one.alternatives]} for one in scored
    ]
    return {"content": content, "refusal": None}


def _token(one: ScoredToken) -> Token:
    return {"token": one.data.decode("utf-8", "replace"), "bytes": list(one.data), "logprob": one.logprob}


def model(card: ModelCard) -> ModelAnswer:
    """A model on the wire."""
    return {
        "id": card.name,
        "object": "model",
        "created": card.created,
        "owned_by": "chatsvc",
        "max_model_len": card.context_length,
    }


def usage(counts: Usage) -> OpenAIUsage:
    """The counts on the wire."""
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
        """Chunks for an event; a choice's first chunk, with the role, is sent with its first text."""
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
        scored: Logprobs | None = None,
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
