"""``/chat`` and ``/chat/stream``. Knows nothing about models or tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

from flask import Blueprint, Response, request

from chatsvc.chat.service import Call, ChatService, Whole
from chatsvc.chat.several import together
from chatsvc.chat.types import ChatRequest, Choice, Delta, Event, Finish, Start, Usage
from chatsvc.errors import ChatsvcError, EngineUnavailable, LimitExceeded
from chatsvc.guard.gate import Gate
from chatsvc.guard.principal import scope
from chatsvc.http.api.chat_schema import Bounds, ChatBody
from chatsvc.http.server import connection
from chatsvc.http.wire import context, problems, sse
from chatsvc.http.wire.routing import requires
from chatsvc.http.wire.schema import Model, max_chat_bytes, parse_json


@dataclass(frozen=True, slots=True)
class ChatDesk:
    """What the chat routes need."""

    gate: Gate
    service: ChatService
    bounds: Bounds
    keep_alive_s: float
    max_body_bytes: int | Literal["auto"] = "auto"

    def read(self, model: type[Model]) -> Model:
        """The checked body of the request being answered; it may be as long as the model's context needs."""
        return parse_json(request, model, max_bytes=self._max_bytes())

    def _max_bytes(self) -> int:
        if self.max_body_bytes != "auto":
            return self.max_body_bytes
        try:
            context_length = self.service.engine.card().context_length
        except EngineUnavailable:  # the answer will say so, if the body is in order
            context_length = None
        return max_chat_bytes(context_length)

    def call(self) -> Call:
        """Steps 4–6 of the gate for the request being answered; the service releases the admission."""
        caller = context.principal()
        facts, is_gone = context.facts("chat.generate"), connection.is_gone(request.environ)
        try:
            admission = self.gate.admit(caller)
        except LimitExceeded as error:
            self.service.audit.count_denial(facts, error.code or "limit_exceeded")
            raise
        # Nothing may come between the admission and the service that releases it.
        return Call(admission, caller.account_id, facts, is_gone)

    def stream(
        self, chat_request: ChatRequest, encoder: sse.Encoder[Event], headers: Mapping[str, str] = MappingProxyType({})
    ) -> Response:
        """A streaming answer; ``headers`` go with those of the limits."""
        call = self.call()
        events = self.service.stream(call, chat_request)
        told = {**call.admission.limits_headers(), **headers}
        return sse.answer(events, encoder, keep_alive_s=self.keep_alive_s, headers=told)

    def complete(self, chat_request: ChatRequest) -> tuple[list[Whole], Finish, dict[str, str]]:
        """All choices, how they ended, and the headers of the limits."""
        call = self.call()
        wholes, finish = self.service.complete_all(call, chat_request)
        return wholes, finish, call.admission.limits_headers()

    def stream_all(
        self, requests: Sequence[ChatRequest], encoder: sse.Encoder[Choice], headers: Mapping[str, str]
    ) -> Response:
        """A streaming answer of several completions; each is admitted, counted and recorded like any other."""
        told = dict(headers)
        events = self._together(requests, told)
        answer = sse.answer(events, encoder, keep_alive_s=self.keep_alive_s, headers={})
        answer.headers.update(told)
        return answer

    def complete_all(self, requests: Sequence[ChatRequest]) -> tuple[list[tuple[list[Whole], Finish]], dict[str, str]]:
        """The choices of each and how they ended, and the headers of the limits."""
        told: dict[str, str] = {}
        wholes = [[Whole() for _ in range(one.num_choices)] for one in requests]
        ends: dict[int, Finish] = {}
        for choice in self._together(requests, told):
            if isinstance(choice.event, Delta):
                wholes[choice.index][choice.event.index].take(choice.event)
            elif isinstance(choice.event, Finish):
                ends[choice.index] = choice.event
        return [(whole, ends[index]) for index, whole in enumerate(wholes)], told

    def _together(self, requests: Sequence[ChatRequest], headers: dict[str, str]) -> Iterator[Choice]:
        """What happens in each; when all have begun ``headers`` has those of the limits too."""

        def start(chat_request: ChatRequest) -> Iterator[Event]:
            call = self.call()
            headers.update(call.admission.limits_headers())
            return self.service.stream(call, chat_request)

        return together([partial(start, chat_request) for chat_request in requests])


def blueprint(desk: ChatDesk) -> Blueprint:
    """The routes."""
    routes = Blueprint("chat", __name__)

    @routes.post("/chat")
    @requires(scope("chat"))
    def chat() -> tuple[dict[str, Any], int, dict[str, str]]:
        body = desk.read(ChatBody)
        wholes, finish, headers = desk.complete(body.to_request(desk.bounds))
        return {**ending(finish), "result": wholes[0].text, "model": finish.model}, 200, headers

    @routes.post("/chat/stream")
    @requires(scope("chat"))
    def chat_stream() -> Response:
        body = desk.read(ChatBody)
        return desk.stream(body.to_request(desk.bounds), ChatEncoder())

    return routes


class ChatEncoder:
    """``/chat/stream``'s events."""

    def encode(self, event: Event) -> bytes:
        """The ids, a token, or the end."""
        if isinstance(event, Delta):
            return sse.message({"token": event.text})
        if isinstance(event, Start):
            return sse.message(asdict(event), event="start")
        if isinstance(event, Finish):
            return sse.message(ending(event), event="done")
        return b""

    def error(self, error: ChatsvcError) -> bytes:
        """``event: error``."""
        return sse.message(problems.body_of(error), event="error")


def ending(finish: Finish) -> dict[str, Any]:
    """What an answer and the end of a stream have in common."""
    return {
        "id": finish.id,
        "finish_reason": finish.reason,
        "usage": usage(finish.usage),
        "conversation_id": finish.conversation_id,
    }


def usage(counts: Usage) -> dict[str, int]:
    """The three counts."""
    return {
        "prompt_tokens": counts.num_prompt_tokens,
        "completion_tokens": counts.num_completion_tokens,
        "total_tokens": counts.num_prompt_tokens + counts.num_completion_tokens,
    }
