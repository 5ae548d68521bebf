"""One connection from the web side to one engine, and its generations. Starts no thread.

A broken link stays broken: its generations have ended with an error, and a new engine gets a new link.
"""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable, Sequence

from chatsvc.engine.progress import Progress
from chatsvc.engine.protocol import (
    NOT_FINITE,
    Accepted,
    Adopt,
    Cancel,
    Delta,
    Finished,
    Heartbeat,
    Hello,
    ProtocolError,
    Sampling,
    Submit,
    ToEngine,
    ToWeb,
    decode_to_web,
    encode_frame,
)
from chatsvc.engine.sockets import Connection
from chatsvc.engine.web_side.generation import Generation
from chatsvc.errors import ChatsvcError, Draining, EngineUnavailable, InvalidRequest, ModelFailed, Unavailable
from chatsvc.models.card import ModelCard

# The web side sends little; an engine inside a long step may leave some of it waiting.
_MAX_UNSENT_BYTES = 64 * 1024 * 1024


class Link:
    """A connection, the engine's Hello and latest heartbeat, and the generations by their wire ids.

    Args:
        sock: connected, non-blocking.
        clock: monotonic seconds.
        wake: called when bytes are left for the client's thread to send.
    """

    def __init__(self, sock: socket.socket, clock: Callable[[], float], wake: Callable[[], None]) -> None:
        self.connection = Connection(sock, max_unsent_bytes=_MAX_UNSENT_BYTES)
        self.hello: Hello | None = None
        self.heartbeat: Heartbeat | None = None
        self.draining_since: float | None = None
        self._clock = clock
        self._wake = wake
        self._progress = Progress(clock())
        self._generations: dict[int, Generation] = {}
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._dead = False

    @property
    def is_greeted(self) -> bool:
        """Whether Hello and a first heartbeat were received."""
        return self.hello is not None and self.heartbeat is not None

    @property
    def card(self) -> ModelCard:
        """The engine's model; only after Hello was received."""
        assert self.hello is not None
        return self.hello.card

    def submit(self, prompt_ids: Sequence[int], sampling: Sampling, sharing_key: str, num_public: int) -> Generation:
        """Send a sequence.

        Raises:
            EngineUnavailable: the engine has died.
        """
        sequence_id = next(self._ids)
        generation = Generation(
            self.card, lambda: self._send(Cancel(sequence_id=sequence_id)), is_accepted=sampling.grammar is None
        )
        with self._lock:
            if self._dead:
                raise EngineUnavailable
            self._generations[sequence_id] = generation
        self._send(
            Submit(
                sequence_id=sequence_id,
                prompt_ids=list(prompt_ids),
                sampling=sampling,
                sharing_key=sharing_key,
                num_public=num_public,
            )
        )
        return generation

    def adopt(self) -> None:
        """Tell the engine that its model was accepted."""
        self._send(Adopt())

    def receive(self) -> None:
        """Process received frames. A connection that ended or sent invalid frames is broken afterwards."""
        try:
            for payload in self.connection.receive():
                self._progress.hear(self._clock())
                self._handle(decode_to_web(payload))
        except ProtocolError:
            self.connection.broken = True

    def is_hung(self, stall_timeout_s: float) -> bool:
        """See :meth:`Progress.is_hung`."""
        return self._progress.is_hung(self._clock(), stall_timeout_s)

    def retire_if_unused(self) -> bool:
        """If no generation is left, accept no more submits and return True."""
        with self._lock:
            self._dead = self._dead or not self._generations
            return self._dead

    def die(self, why: Unavailable) -> None:
        """Close, and end every generation with an error."""
        with self._lock:
            self._dead = True
            generations = list(self._generations.values())
            self._generations.clear()
        self.connection.close()
        for generation in generations:
            generation.put(why)

    def _send(self, message: ToEngine) -> None:
        self.connection.send(encode_frame(message))
        if self.connection.wants_write or self.connection.broken:
            self._wake()

    def _handle(self, message: ToWeb) -> None:
        if isinstance(message, Accepted | Delta):
            generation = self._generations.get(message.sequence_id)
            if generation is not None:
                generation.put(message)
        elif isinstance(message, Finished):
            with self._lock:
                generation = self._generations.pop(message.sequence_id, None)
            if generation is not None:
                generation.put(_end_of(message))
        elif isinstance(message, Heartbeat):
            self._take_heartbeat(message)
        else:
            self.hello = message

    def _take_heartbeat(self, heartbeat: Heartbeat) -> None:
        self._progress.note(heartbeat, self._clock())
        if heartbeat.status == "draining" and self.draining_since is None:
            self.draining_since = self._clock()
        self.heartbeat = heartbeat


def _end_of(finished: Finished) -> Finished | ChatsvcError:
    """What a reader gets: a failure becomes an exception, so that it cannot be mistaken for an answer."""
    if finished.reason != "error":
        return finished
    if finished.refusal:
        return InvalidRequest(f"response_format: {finished.refusal}.", param="response_format", code="invalid_value")
    if finished.detail == NOT_FINITE:
        return ModelFailed()
    return Draining() if finished.detail == "draining" else EngineUnavailable(f"The model failed: {finished.detail}.")
