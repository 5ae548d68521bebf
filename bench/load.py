"""The load generator: streams that begin together, each read as a client would, each token's time taken.

One thread a stream with a connection kept open, TLS where the server has it; any server that speaks
``/v1/chat/completions`` with ``stream: true``. Our own rather than guidellm or locust, and of the standard library
alone: the generator runs on the cores it measures, so what it costs is taken from every server.
Knows nothing about how a server is started or what is compared with what.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.sse import EventBuffer

Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """A server under load. ``headers`` is asked before every request, because tokens expire."""

    name: str
    host: str
    port: int
    tls: ssl.SSLContext | None = None
    headers: Callable[[], Mapping[str, str]] = field(default=dict)
    extra: Body = field(default_factory=dict)
    path: str = "/v1/chat/completions"

    def connect(self, timeout_s: float = 600) -> http.client.HTTPConnection:
        """A connection of its own, handshake done."""
        if self.tls is None:
            connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)
        else:
            connection = http.client.HTTPSConnection(self.host, self.port, timeout=timeout_s, context=self.tls)
        connection.connect()
        return connection


@dataclass(frozen=True, slots=True)
class Sample:
    """One request as its client saw it; times are seconds on the generator's clock, 0 where it never came so far.

    ``times`` are those of the pieces of text, as they came.
    """

    started: float
    ended: float
    first: float = 0.0
    status: int = 0
    num_prompt: int = 0
    num_completion: int = 0
    worst_gap_s: float = 0.0
    times: tuple[float, ...] = ()
    text: str = ""
    error: str = ""
    retry_after_s: float | None = None

    @property
    def first_s(self) -> float:
        """Time to the first piece of text."""
        return self.first - self.started


def chat(messages: Sequence[Mapping[str, str]], max_tokens: int, **more: object) -> Body:
    """A greedy streaming request that asks for its usage; no server penalises repetition, whatever its default."""
    return {
        "messages": list(messages),
        "max_tokens": max_tokens,
        "temperature": 0,
        "repetition_penalty": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
    } | more


def stream(target: Target, connection: http.client.HTTPConnection, body: Body) -> Sample:
    """Send one request and read its stream to the end."""
    payload = json.dumps({**body, **target.extra}).encode()
    headers = {"Content-Type": "application/json", **target.headers()}
    started = time.perf_counter()
    try:
        connection.request("POST", target.path, payload, headers)
        response = connection.getresponse()
        if response.status != 200:
            refusal = response.read()[:500].decode(errors="replace")
            after = response.headers.get("Retry-After")
            now = time.perf_counter()
            wait = float(after) if after else None
            return Sample(started, now, status=response.status, error=refusal, retry_after_s=wait)
        return _read(response, started)
    except (OSError, http.client.HTTPException, ValueError) as error:
        connection.close()
        return Sample(started, time.perf_counter(), error=repr(error))


def _read(response: http.client.HTTPResponse, started: float) -> Sample:
    """Store the pieces and their times; they are parsed later, so as not to use the server's cores."""
    pieces = []
    while received := response.read1(65536):
        pieces.append((time.perf_counter(), received))
    return _parse(pieces, started, time.perf_counter())


def _parse(pieces: Sequence[tuple[float, bytes]], started: float, ended: float) -> Sample:
    events, texts, times = EventBuffer(), [], []
    usage: Mapping[str, int] = {}
    error, is_done = "", False
    for now, received in pieces:
        for event in events.feed(received):
            if event.data == "[DONE]":
                is_done = True
                continue
            chunk = json.loads(event.data)
            if "error" in chunk:
                error = json.dumps(chunk["error"])
            usage = chunk.get("usage") or usage
            if text := _text_of(chunk):
                texts.append(text)
                times.append(now)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    return Sample(
        started=started,
        first=times[0] if times else 0.0,
        ended=ended,
        status=200,
        num_prompt=usage.get("prompt_tokens", 0),
        num_completion=usage.get("completion_tokens", 0),
        worst_gap_s=max(gaps, default=0.0),
        times=tuple(times),
        text="".join(texts),
        error=error or ("" if is_done else "the stream ended without [DONE]"),
    )


def _text_of(chunk: Mapping[str, Any]) -> str:
    choices = chunk.get("choices") or [{}]
    return (choices[0].get("delta") or {}).get("content") or ""


@contextlib.contextmanager
def asking(ask: Callable[[], object], num_clients: int) -> Iterator[None]:
    """So many threads that call ``ask`` again and again until the block ends; it deals with its own errors."""
    stop = threading.Event()

    def go_on() -> None:
        while not stop.is_set():
            ask()

    threads = [threading.Thread(target=go_on) for _ in range(num_clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


class Streams:
    """So many connections that are used together, again and again."""

    def __init__(self, target: Target, count: int) -> None:
        self._target = target
        self._connections = [target.connect() for _ in range(count)]

    def burst(self, bodies: Sequence[Body]) -> list[Sample]:
        """One request a connection, all begun at the same moment; what came of each, in the same order."""
        samples: list[Sample | None] = [None] * len(bodies)
        gate = threading.Barrier(len(bodies))
        self._target.headers()  # where a new login is due, it is not part of what is measured

        def run(number: int) -> None:
            gate.wait()
            sample = stream(self._target, self._connections[number], bodies[number])
            if sample.error.startswith("RemoteDisconnected"):  # llama.cpp ends it after five requests
                sample = stream(self._target, self._connections[number], bodies[number])
            samples[number] = sample

        threads = [threading.Thread(target=run, args=(number,)) for number in range(len(bodies))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [sample for sample in samples if sample is not None]

    def close(self) -> None:
        """End the connections."""
        for connection in self._connections:
            connection.close()
