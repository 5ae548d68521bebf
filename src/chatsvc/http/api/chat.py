"""``/chat`` and ``/chat/stream``. Knows nothing about models or tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal, TypedDict

from flask import Response, request

from chatsvc.chat.parallel import in_parallel
from chatsvc.chat.service import Call, ChatService, WholeChoice
from chatsvc.chat.types import ChatRequest, Delta, Event, Finish, IndexedEvent, Reason, Start, Usage
from chatsvc.errors import ChatsvcError, EngineUnavailable, LimitExceeded
from chatsvc.guard.gate import Gate
from chatsvc.guard.principal import scope
from chatsvc.http.api.chat_schema import Bounds, ChatBody
from chatsvc.http.server import connection
from chatsvc.http.wire import context, problems, sse
from chatsvc.http.wire.routing import Operation, like, requires, route
from chatsvc.http.wire.schema import Model, max_chat_bytes, parse_json


@dataclass(frozen=True, slots=True)
class ChatAccess:
    """What all routes that generate text share: reading the body, admission, and the service."""

    gate: Gate
    service: ChatService
    bounds: Bounds
    keep_alive_s: float
    max_body_bytes: int | Literal["auto"] = "auto"

    def read(self, model: type[Model]) -> Model:
        """The checked body; it may be as long as the model's context needs."""
        return parse_json(request, model, max_bytes=self._max_bytes())

    def _max_bytes(self) -> int:
        if self.max_body_bytes != "auto":
            return self.max_body_bytes
        try:
            context_length = self.service.engine.card().context_length
        except EngineUnavailable:  # the service reports it, once the body has been checked
            context_length = None
        return max_chat_bytes(context_length)

    def call(self) -> Call:
        """Steps 5–7 for the request being answered: rate, quota, queue. The service releases the admission."""
        caller = context.principal()
        facts, is_gone = context.facts("chat.generate"), connection.is_gone(request.environ)
        try:
            admission = self.gate.admit(caller)
        except LimitExceeded as error:
            self.service.audit.count_denial(facts, error.code or "limit_exceeded")
            raise
        # No code between the admission and the service, which releases it: an error there would leak the admission.
        return Call(admission, caller.account_id, facts, is_gone)

    def stream(
        self, chat_request: ChatRequest, encoder: sse.Encoder[Event], headers: Mapping[str, str] = MappingProxyType({})
    ) -> Response:
        """A streaming answer; ``headers`` are sent with those of the limits."""
        call = self.call()
        events = self.service.stream(call, chat_request)
        told = {**call.admission.limits_headers(), **headers}
        return sse.answer(events, encoder, keep_alive_s=self.keep_alive_s, headers=told)

    def complete(self, chat_request: ChatRequest) -> tuple[list[WholeChoice], Finish, dict[str, str]]:
        """The text of every choice, how they ended, and the headers of the limits."""
        call = self.call()
        wholes, finish = self.service.complete_all(call, chat_request)
        return wholes, finish, call.admission.limits_headers()

    def stream_all(
        self, requests: Sequence[ChatRequest], encoder: sse.Encoder[IndexedEvent], headers: Mapping[str, str]
    ) -> Response:
        """A streaming answer of several completions; each is admitted, counted and recorded by itself."""
        told = dict(headers)
        events = self._in_parallel(requests, told)
        answer = sse.answer(events, encoder, keep_alive_s=self.keep_alive_s, headers={})
        answer.headers.update(told)
        return answer

    def complete_all(
        self, requests: Sequence[ChatRequest]
    ) -> tuple[list[tuple[list[WholeChoice], Finish]], dict[str, str]]:
        """The choices of each completion and how they ended, and the headers of the limits."""
        told: dict[str, str] = {}
        wholes = [[WholeChoice() for _ in range(one.num_choices)] for one in requests]
        ends: dict[int, Finish] = {}
        for choice in self._in_parallel(requests, told):
            if isinstance(choice.event, Delta):
                wholes[choice.index][choice.event.index].take(choice.event)
            elif isinstance(choice.event, Finish):
                ends[choice.index] = choice.event
        return [(whole, ends[index]) for index, whole in enumerate(wholes)], told

    def _in_parallel(self, requests: Sequence[ChatRequest], headers: dict[str, str]) -> Iterator[IndexedEvent]:
        """The events of each completion. The limits' headers are added to ``headers`` as each one starts."""

        def start(chat_request: ChatRequest) -> Iterator[Event]:
            call = self.call()
            headers.update(call.admission.limits_headers())
            return self.service.stream(call, chat_request)

        return in_parallel([partial(start, chat_request) for chat_request in requests])


class UsageAnswer(TypedDict):
    """Tokens of the prompt, of the answer, and together."""

    prompt_tokens: Annotated[int, like(12)]
    completion_tokens: Annotated[int, like(2)]
    total_tokens: Annotated[int, like(14)]


class Ending(TypedDict):
    """What an answer and the last event of a stream have in common."""

    id: Annotated[str, like("9c1185a5c5e9fc54612808977ee8f548")]
    finish_reason: Annotated[Reason, like("stop")]
    usage: UsageAnswer
    conversation_id: Annotated[str, like("b1946ac92492d2347c6235b4d2611184")]


class ChatAnswer(Ending):
    """The whole answer."""

    result: Annotated[str, like("Paris")]
    model: Annotated[str, like("Qwen1.5-0.5B-Chat")]


_STREAM = """\
event: start
data: {"id":"9c1185a5c5e9fc54612808977ee8f548","conversation_id":"b1946ac92492d2347c6235b4d2611184","model":"Qwen1.5-0.5B-Chat"}

data: {"token":"Par"}

data: {"token":"is"}

event: done
data: {"id":"9c1185a5c5e9fc54612808977ee8f548","finish_reason":"stop","usage":{"prompt_tokens":12,"completion_tokens":2,"total_tokens":14},"conversation_id":"b1946ac92492d2347c6235b4d2611184"}

"""  # noqa: E501


@dataclass(frozen=True, slots=True)
class ChatViews:
    """The views, and what they need."""

    TAG: ClassVar = "chat"

    access: ChatAccess

    @route("POST", "/chat")
    @requires(scope("chat"))
    @Operation(body=ChatBody, answer=ChatAnswer, errors=(404, 429))
    def chat(self) -> tuple[ChatAnswer, int, dict[str, str]]:
        """Chat; the whole answer at once.

        Send exactly one of `query` and `messages`. With `conversation_id`, the request continues that conversation.
        """
        body = self.access.read(ChatBody)
        wholes, finish, headers = self.access.complete(body.to_request(self.access.bounds))
        return {**ending(finish), "result": wholes[0].text, "model": finish.model}, 200, headers

    @route("POST", "/chat/stream")
    @requires(scope("chat"))
    @Operation(body=ChatBody, texts={"text/event-stream": _STREAM}, errors=(404, 429))
    def chat_stream(self) -> Response:
        """Chat; the answer as server-sent events.

        `event: start` with the ids comes first, then events with a `token` each, then `event: done`; or `event: error`
        with an error in its usual shape, and the stream ends. The tokens joined equal the `result` of `/chat`. A
        comment line keeps a quiet connection alive.
        """
        body = self.access.read(ChatBody)
        return self.access.stream(body.to_request(self.access.bounds), ChatEncoder())


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


def ending(finish: Finish) -> Ending:
    """What an answer and the end of a stream have in common."""
    assert finish.conversation_id is not None, "requests of these routes belong to a conversation"
    return {
        "id": finish.id,
        "finish_reason": finish.reason,
        "usage": usage(finish.usage),
        "conversation_id": finish.conversation_id,
    }


def usage(counts: Usage) -> UsageAnswer:
    """The three counts."""
    return {
        "prompt_tokens": counts.num_prompt_tokens,
        "completion_tokens": counts.num_completion_tokens,
        "total_tokens": counts.num_prompt_tokens + counts.num_completion_tokens,
    }
