"""Server-sent events: values to bytes, and a WSGI iterable that sends keep-alive comments and cancels on close.

The format is the WHATWG HTML standard's, section 9.2. Knows nothing about what is streamed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Annotated, Any, Generic, NotRequired, Protocol, TypedDict, TypeVar

import msgspec
from flask import Response

from chatsvc.chat.types import Waiting
from chatsvc.errors import ChatsvcError, ClientGone
from chatsvc.http.wire import context, problems

KEEP_ALIVE = b": keep-alive\n\n"
HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",
}

_json = msgspec.json.Encoder()


def message(data: Any, *, event: str | None = None) -> bytes:
    """One event. JSON holds no raw newline, so one ``data`` line is enough."""
    name = f"event: {event}\n".encode() if event else b""
    return name + b"data: " + _json.encode(data) + b"\n\n"


class StreamEvent(TypedDict):
    """One server-sent event."""

    data: str
    event: NotRequired[str]
    id: NotRequired[str]
    retry: NotRequired[Annotated[int, msgspec.Meta(ge=0)]]


T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


class Encoder(Protocol[T_contra]):
    """Turns events into one API's bytes; empty for an event that it does not send."""

    def encode(self, event: T_contra) -> bytes:
        """Bytes for an event."""

    def error(self, error: ChatsvcError) -> bytes:
        """Bytes for an error in mid-stream; the stream ends after them."""


class EventStream(Generic[T]):
    """A WSGI iterable. ``close()``, which every server calls, cancels what still runs, even before the first byte."""

    def __init__(
        self,
        events: Iterator[T],
        encoder: Encoder[T],
        *,
        keep_alive_s: float,
        on_error: Callable[[ChatsvcError], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._events = events
        self._encoder = encoder
        self._keep_alive_s = keep_alive_s
        self._on_error = on_error
        self._clock = clock
        self._last_write = clock()
        self._chunks = self._encode()

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        """End the events' generator, whose ``finally`` cancels, records and releases."""
        self._chunks.close()  # type: ignore[attr-defined]
        close = getattr(self._events, "close", None)
        if close is not None:
            close()

    def _encode(self) -> Iterator[bytes]:
        try:
            for event in self._events:
                data = self._encoder.encode(event) or self._keep_alive(event)
                if data:
                    yield data
                    self._last_write = self._clock()
        except ClientGone as error:
            self._on_error(error)
        except Exception as error:  # noqa: BLE001  the wire's edge: the status is sent already, only an event can tell
            known = problems.known(error)
            self._on_error(known)
            yield self._encoder.error(known)

    def _keep_alive(self, event: T) -> bytes:
        if not self._keep_alive_s or self._clock() - self._last_write < self._keep_alive_s:
            return b""
        if isinstance(event, Waiting) and event.position:
            wait = "" if event.estimate_s is None else f", about {event.estimate_s:.0f} s"
            return f": keep-alive\n: position {event.position}{wait}\n\n".encode()
        return KEEP_ALIVE


def answer(events: Iterator[T], encoder: Encoder[T], *, keep_alive_s: float, headers: dict[str, str]) -> Response:
    """A streaming answer. It begins once two events exist, so that a refusal before them is an ordinary error response.

    The first event, Start, means only that the request is admitted; its record and the engine can still refuse it.
    """
    first = [next(events), next(events)]
    now = context.current()

    def note(error: ChatsvcError) -> None:
        now.error_code = error.code

    stream = EventStream(_Chained(first, events), encoder, keep_alive_s=keep_alive_s, on_error=note)
    return Response(stream, headers={**headers, **HEADERS})


class _Chained(Generic[T]):
    """The events that were taken already, then the rest; closing it closes the rest."""

    def __init__(self, first: list[T], rest: Iterator[T]) -> None:
        self._chain = chain(first, rest)
        self._rest = rest

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        return next(self._chain)

    def close(self) -> None:
        """Close the rest."""
        close = getattr(self._rest, "close", None)
        if close is not None:
            close()
