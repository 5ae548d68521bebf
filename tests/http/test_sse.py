"""Server-sent events: bytes, keep-alive, errors in mid-stream, closing."""

from __future__ import annotations

import socket

import pytest

from chatsvc.chat.types import Delta, Finish, Start, Usage, Waiting
from chatsvc.errors import AuthenticationFailed, ClientGone, EngineUnavailable
from chatsvc.http.api.chat import ChatEncoder
from chatsvc.http.api.openai.chat import ChunkEncoder
from chatsvc.http.api.openai.chat_schema import OpenAIBody
from chatsvc.http.server import connection
from chatsvc.http.wire.sse import EventStream, message

FINISH = Finish("id", ("stop",), Usage(3, 2), "model", "c")


class Clock:
    """A clock that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def openai_encoder(*, wants_usage=False):
    options = {"stream_options": {"include_usage": True}} if wants_usage else {}
    said = [{"role": "user", "content": "Hi"}]
    return ChunkEncoder("m", 1, OpenAIBody.model_validate({"messages": said, "stream": True, **options}))


def stream(events, encoder=None, *, keep_alive_s=10.0, clock=None, errors=None):
    return EventStream(
        events,
        encoder or ChatEncoder(),
        keep_alive_s=keep_alive_s,
        on_error=(errors if errors is not None else []).append,
        clock=clock or Clock(),
    )


def test_an_event_is_one_line_of_json_whatever_is_in_it():
    assert message({"token": 'a\n"b"\r\u2028é🗼'}) == 'data: {"token":"a\\n\\"b\\"\\r\u2028é🗼"}\n\n'.encode()
    assert message({}, event="done") == b"event: done\ndata: {}\n\n"


def test_tokens_then_done():
    chunks = list(stream(iter([Waiting(), Delta("Par"), Delta("is"), FINISH])))
    assert chunks[:2] == [b'data: {"token":"Par"}\n\n', b'data: {"token":"is"}\n\n']
    assert chunks[2].startswith(
        b'event: done\ndata: {"id":"id","finish_reason":"stop","usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}'
    )
    assert len(chunks) == 3


def test_the_ids_come_first():
    chunks = list(stream(iter([Start("id", "c", "m"), Delta("x"), FINISH])))
    assert chunks[0] == b'event: start\ndata: {"id":"id","conversation_id":"c","model":"m"}\n\n'
    openai = list(stream(iter([Start("id", "c", "m"), FINISH]), openai_encoder()))
    assert len(openai) == 1
    assert b"event:" not in openai[0]


def test_a_comment_keeps_a_silent_line_alive():
    clock = Clock()

    def events():
        for clock.now in (4, 9.9, 10, 15, 21):
            yield Waiting()
        yield Delta("x")
        for clock.now in (30.9, 31):
            yield Waiting()

    assert list(stream(events(), clock=clock)) == [
        b": keep-alive\n\n",
        b": keep-alive\n\n",
        b'data: {"token":"x"}\n\n',
        b": keep-alive\n\n",
    ]


def test_who_waits_in_the_queue_is_told_its_place():
    clock = Clock()

    def events():
        clock.now += 10
        yield Waiting(3, 12.3)
        clock.now += 10
        yield Waiting(2)

    assert list(stream(events(), clock=clock)) == [
        b": keep-alive\n: position 3, about 12 s\n\n",
        b": keep-alive\n: position 2\n\n",
    ]


def test_zero_turns_the_comments_off():
    clock = Clock()

    def events():
        for clock.now in (100, 200):
            yield Waiting()

    assert list(stream(events(), clock=clock, keep_alive_s=0)) == []


def failing(error):
    yield Delta("x")
    raise error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (EngineUnavailable(), "service_unavailable"),
        (AuthenticationFailed("why"), "authentication_error"),
        (RuntimeError("secret"), "server_error"),
    ],
)
def test_an_error_in_mid_stream_is_the_last_event(error, kind):
    noted = []
    chunks = list(stream(failing(error), errors=noted))
    assert chunks[-1].startswith(b'event: error\ndata: {"error":{"message":')
    assert kind.encode() in chunks[-1]
    assert b"secret" not in chunks[-1]
    assert b"why" not in chunks[-1].split(b'"type"')[1]
    assert len(noted) == 1


def test_an_error_in_openais_stream_has_no_done():
    chunks = list(stream(failing(EngineUnavailable()), openai_encoder(wants_usage=True)))
    assert chunks[-1].startswith(b'data: {"error":{')
    assert not any(b"[DONE]" in chunk or b'"finish_reason":"' in chunk for chunk in chunks)


def test_openais_chunks_of_an_empty_completion_still_begin_with_the_role():
    (chunk,) = stream(iter([FINISH]), openai_encoder())
    assert chunk.index(b'"role":"assistant"') < chunk.index(b'"finish_reason":"stop"') < chunk.index(b"[DONE]")


def test_a_client_that_has_gone_is_told_nothing():
    noted = []
    assert list(stream(failing(ClientGone()), errors=noted)) == [b'data: {"token":"x"}\n\n']
    assert noted[0].code == "client_gone"


@pytest.mark.parametrize("num_read", [0, 1])
def test_closing_ends_the_events_also_before_the_first_byte(num_read):
    ended = []

    def events():
        try:
            while True:
                yield Delta("x")
        finally:
            ended.append(True)

    running = events()
    next(running)
    answer = stream(running)
    for _ in range(num_read):
        next(iter(answer))
    answer.close()
    assert ended == [True]


def test_a_closed_connection_is_seen_and_an_open_one_is_not():
    ours, theirs = socket.socketpair()
    probe = connection.is_gone({"gunicorn.socket": ours})
    assert probe() is False
    theirs.sendall(b"GET / HTTP/1.1\r\n")  # the next request, sent early, is no farewell
    assert probe() is False
    theirs.close()
    assert probe() is True
    ours.close()
    assert probe() is True
    assert connection.is_gone({})() is False
