"""The web side's client of the engine: submit ids, read ids. One thread of its own; callers only touch queues.

It connects, reconnects with back-off, notices an engine that hangs, and moves new work to a successor when the engine
drains, while old generations finish on the old engine. Knows no text and no principal.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chatsvc.engine.protocol import Heartbeat, Sampling
from chatsvc.engine.sockets import connect, identity_of, next_path
from chatsvc.engine.web_side.generation import Generation
from chatsvc.engine.web_side.link import Link
from chatsvc.engine.web_side.preparation import Preparation
from chatsvc.errors import Draining, EngineUnavailable
from chatsvc.models.card import ModelCard

_log = logging.getLogger(__name__)

_POLL_S = 0.25
_MIN_BACK_OFF_S = 0.05
_MAX_BACK_OFF_S = 0.5
_UNUSABLE_BACK_OFF_S = 5.0  # trying a model whose chat template is broken can take seconds of processor time
# A draining engine still takes what arrives within a second of its announcement (LoopOptions.accept_while_draining_s);
# half of it is left for the transit.
_DRAIN_GRACE_S = 0.5


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """The engine's state as the web side last saw it.

    ``reason`` says why it is not ready: ``starting``, ``died``, ``stalled``, ``draining`` or ``unusable model``.
    """

    ready: bool
    reason: str | None = None
    draining: bool = False
    num_running: int = 0
    num_waiting: int = 0
    num_steps: int = 0
    num_generated_tokens: int = 0
    cache_usage: float = 0.0
    max_num_seqs: int = 0


class EngineClient:
    """Call :meth:`start`; then :meth:`status`, :meth:`card` and :meth:`submit` from any thread; then :meth:`close`."""

    def __init__(
        self, socket_path: Path, *, stall_timeout_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = socket_path
        self._stall_timeout_s = stall_timeout_s
        self._clock = clock
        self._selector = selectors.DefaultSelector()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine-client", daemon=True)
        self._prepare: Callable[[ModelCard], None] = lambda _card: None
        self._reason = "starting"
        self._current: Link | None = None
        self._candidate: Link | None = None
        self._preparation: Preparation | None = None
        self._retiring: list[Link] = []
        self._back_off_s = _MIN_BACK_OFF_S
        self._next_attempt = 0.0
        self._seen: tuple[int, int] | None = None

    def start(self, prepare: Callable[[ModelCard], None] = lambda _card: None) -> None:
        """Begin to connect. Returns at once.

        ``prepare`` is called with every new model's card before work goes to it, so that no caller waits for what is
        built once for each model (such as a tokenizer). It has a thread of its own, so other engines are still read.
        """
        self._prepare = prepare
        self._thread.start()

    def close(self) -> None:
        """Cut every connection (the engine cancels what was running) and end the thread."""
        self._closing.set()
        self._wake()
        if self._thread.is_alive():
            self._thread.join()
        if self._preparation is not None:
            self._preparation.join()
        self._wake_in.close()
        self._wake_out.close()
        self._selector.close()

    def status(self) -> EngineStatus:
        """The latest known state. Never blocks."""
        link = self._current
        if link is None or link.heartbeat is None or link.hello is None:
            return EngineStatus(ready=False, reason=self._reason, draining=self._reason == "draining")
        if link.is_hung(self._stall_timeout_s):
            return EngineStatus(ready=False, reason="stalled")
        beats = [beat for beat in (link.heartbeat, *(other.heartbeat for other in self._retiring)) if beat is not None]
        draining = self._is_past_grace(link)
        return EngineStatus(
            ready=not draining,
            reason="draining" if draining else None,
            draining=link.draining_since is not None,
            num_running=sum(beat.num_running for beat in beats),
            num_waiting=sum(beat.num_waiting for beat in beats),
            num_steps=link.heartbeat.num_steps,
            num_generated_tokens=link.heartbeat.num_generated_tokens,
            cache_usage=link.heartbeat.cache_usage,
            max_num_seqs=link.hello.max_num_seqs,
        )

    def card(self) -> ModelCard:
        """The model that new work goes to.

        Raises:
            EngineUnavailable: none is ready.
        """
        link = self._current
        if link is None:
            raise EngineUnavailable
        return link.card

    def submit(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        sharing_key: str,
        card: ModelCard | None = None,
        num_public: int = 0,
    ) -> Generation:
        """Send a sequence to the engine.

        Args:
            prompt_ids: at least one id, of the model's vocabulary.
            sampling: how to choose tokens.
            sharing_key: sequences with the same key share cached prefixes.
            card: the model that the ids were rendered for; they are invalid for any other.
            num_public: so many of the first ids are the public prompt prefix, which all keys share.

        Raises:
            EngineUnavailable: no engine is ready. Draining: it is shutting down; with code ``model_changed``: render
            the prompt for the new :meth:`card` again.
        """
        link = self._current
        if link is None:
            if self._reason == "draining":
                raise Draining
            raise EngineUnavailable
        if self._is_past_grace(link):
            raise Draining
        if card is not None and card.digest != link.card.digest:
            raise Draining("The model was changed meanwhile; try again.", code="model_changed")
        try:
            return link.submit(prompt_ids, sampling, sharing_key, num_public)
        except EngineUnavailable:
            if self._current in (None, link):
                raise
        # a successor took over between two lines
        return self.submit(prompt_ids, sampling, sharing_key, card, num_public)

    def _is_past_grace(self, link: Link) -> bool:
        return link.draining_since is not None and self._clock() - link.draining_since > _DRAIN_GRACE_S

    # the thread

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # a full pipe has the same effect; a closed one needs none
            self._wake_out.send(b"\0")

    def _run(self) -> None:
        self._selector.register(self._wake_in, selectors.EVENT_READ, None)
        while not self._closing.is_set():
            self._try_to_connect()
            for key, events in self._selector.select(self._pause_s()):
                link: Link | None = key.data
                if link is None:
                    self._wake_in.recv(4096)
                    continue
                if events & selectors.EVENT_WRITE:
                    link.connection.flush()
                if events & selectors.EVENT_READ:
                    link.receive()
            self._sort_links()
        for link in self._links():
            self._drop(link, EngineUnavailable("The service is shutting down."))

    def _links(self) -> list[Link]:
        return [link for link in (self._current, self._candidate, *self._retiring) if link is not None]

    def _pause_s(self) -> float:
        needs_engine = self._candidate is None and (self._current is None or self._current.draining_since is not None)
        return min(_POLL_S, max(0.0, self._next_attempt - self._clock())) if needs_engine else _POLL_S

    def _try_to_connect(self) -> None:
        path, now = self._where_to_connect(), self._clock()
        if path is None or now < self._next_attempt:
            return
        self._next_attempt = now + self._back_off_s
        self._back_off_s = min(2 * self._back_off_s, _MAX_BACK_OFF_S)
        self._seen = identity_of(path)
        try:
            sock = connect(path)
        except OSError:
            return
        self._candidate = Link(sock, self._clock, self._wake)
        self._selector.register(sock, selectors.EVENT_READ, self._candidate)

    def _where_to_connect(self) -> Path | None:
        """The usual path if no engine serves; else the path of a successor, if a new one waits there."""
        current = self._current
        if self._candidate is not None:
            return None
        if current is None or current.draining_since is not None:
            return self._path
        offered = next_path(self._path)
        return offered if identity_of(offered) not in (None, self._seen) else None

    def _sort_links(self) -> None:
        """Decide on every link: keep, promote, retire or drop."""
        for link in self._links():
            if link.connection.broken:
                self._drop(link, EngineUnavailable("The model's process ended; try again."), "died")
            elif link.is_hung(self._stall_timeout_s):
                self._drop(link, EngineUnavailable("The model's process hangs; try again."), "stalled")
            elif link in self._retiring and link.retire_if_unused():
                self._drop(link, EngineUnavailable())
            else:
                events = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.connection.wants_write else 0)
                if self._selector.get_key(link.connection.sock).events != events:
                    self._selector.modify(link.connection.sock, events, link)
        candidate = self._candidate
        if candidate is not None and candidate.is_greeted:
            if candidate.draining_since is not None:
                self._drop(candidate, EngineUnavailable())
            else:
                self._prepare_or_promote(candidate)

    def _prepare_or_promote(self, link: Link) -> None:
        preparation = self._preparation
        if preparation is None or preparation.link is not link:
            self._preparation = Preparation(link, self._prepare, self._wake)
        elif preparation.is_done:
            self._candidate = self._preparation = None
            if preparation.failed:
                self._reason = "unusable model"
                self._next_attempt = self._clock() + _UNUSABLE_BACK_OFF_S
                self._drop(link, EngineUnavailable())
            else:
                self._promote(link)

    def _promote(self, link: Link) -> None:
        before, self._current = self._current, link
        link.adopt()
        self._back_off_s = _MIN_BACK_OFF_S
        if before is not None:
            self._retiring.append(before)
        assert link.hello is not None
        _log.info("connected to the engine, pid %d, model %s", link.hello.pid, link.card.name)

    def _drop(self, link: Link, why: EngineUnavailable, reason: str | None = None) -> None:
        self._selector.unregister(link.connection.sock)
        if link is self._current:
            self._reason = "draining" if link.draining_since is not None else reason or "died"
            self._current = None
            _log.warning("the engine is gone: %s", self._reason)
        elif link is self._candidate:
            self._candidate = None
            self._reason = "stalled" if reason == "stalled" else self._reason
        elif link in self._retiring:
            self._retiring.remove(link)
        link.die(why)


def probe(socket_path: Path, timeout_s: float) -> Heartbeat:
    """Check on a separate connection that an engine is alive.

    Raises:
        EngineUnavailable: none within the time.
    """
    deadline = time.monotonic() + timeout_s
    try:
        link = Link(connect(socket_path), time.monotonic, lambda: None)
    except OSError as error:
        raise EngineUnavailable("No engine listens.") from error
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(link.connection.sock, selectors.EVENT_READ)
            while link.heartbeat is None and not link.connection.broken:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    break
                link.receive()
    finally:
        link.die(EngineUnavailable())
    if link.heartbeat is None:
        raise EngineUnavailable("The engine did not answer.")
    return link.heartbeat
