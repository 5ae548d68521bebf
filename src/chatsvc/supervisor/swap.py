"""Engine processes as the supervisor sees them, and how a new engine replaces the serving one.

1. The new engine, called the successor, listens at :func:`chatsvc.engine.sockets.trial_path` and loads its model.
2. It answers one question of the supervisor's.
3. Its socket is renamed to :func:`chatsvc.engine.sockets.next_path`, where the web process finds it.
4. When the web process has taken the new model's card, the socket gets the name that everybody connects to.

The old engine serves until step 4, so a failure before it interrupts no request. Knows nothing about models.
"""

from __future__ import annotations

import logging
import signal
from dataclasses import replace
from pathlib import Path
from typing import Literal

from chatsvc.engine.progress import Progress
from chatsvc.engine.protocol import (
    Finished,
    Heartbeat,
    Hello,
    ProtocolError,
    Sampling,
    Submit,
    decode_to_web,
    encode_frame,
)
from chatsvc.engine.sockets import Connection, connect, next_path, rename, trial_path
from chatsvc.supervisor.child import Child, Command

_log = logging.getLogger(__name__)

_MAX_UNSENT_BYTES = 4096
_SOCKET_VARIABLE = "CHATSVC_ENGINE__SOCKET"
_ADOPTION_TIMEOUT_S = 60.0  # the web process may be starting, and must build the new tokenizer


class EngineWatch:
    """The engine with process id ``pid``, seen through its socket: is it ready, does it answer, is it hung?

    Call :meth:`poll` often.
    """

    def __init__(self, socket_path: Path, pid: int, stall_timeout_s: float) -> None:
        self.ready = False
        self.is_adopted = False
        self.num_running = 0
        self.answer: Literal["", "right", "wrong"] = ""
        self._socket_path = socket_path
        self._pid = pid
        self._stall_timeout_s = stall_timeout_s
        self._connection: Connection | None = None
        self._progress = Progress(0.0)

    def poll(self, now: float) -> None:
        """Take in what was sent since the last call."""
        if self._connection is None or self._connection.broken:
            self.close()
            self._connect()
        if self._connection is None:
            return
        try:
            for payload in self._connection.receive():
                self._take(payload, now)
        except ProtocolError:
            self.close()

    def is_hung(self, now: float) -> bool:
        """Whether an engine that was ready has stopped making progress."""
        return self.ready and self._progress.is_hung(now, self._stall_timeout_s)

    def ask(self) -> None:
        """Ask it for one token; a later :meth:`poll` sets :attr:`answer`."""
        if self._connection is not None:
            question = Submit(sequence_id=1, prompt_ids=[0], sampling=Sampling(max_tokens=1, temperature=0))
            self._connection.send(encode_frame(question))

    def move(self, socket_path: Path) -> None:
        """Connect to this path from now on; an open connection stays."""
        self._socket_path = socket_path

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> None:
        try:
            self._connection = Connection(connect(self._socket_path), max_unsent_bytes=_MAX_UNSENT_BYTES)
        except OSError:
            return  # not there yet, or gone: is_hung tells

    def _take(self, payload: bytes, now: float) -> None:
        frame = decode_to_web(payload)
        if isinstance(frame, Hello):
            if frame.pid != self._pid:
                raise ProtocolError("the socket still belongs to the previous engine")
            self.ready = True
            self._progress = Progress(now)
        elif isinstance(frame, Heartbeat):
            self._progress.note(frame, now)
            self.num_running = frame.num_running
            self.is_adopted = frame.is_adopted
        elif isinstance(frame, Finished):
            self.answer = "wrong" if frame.reason == "error" else "right"
        self._progress.hear(now)


class Engine:
    """An engine process and its watch."""

    def __init__(self, command: Command, socket_path: Path, stall_timeout_s: float, now: float) -> None:
        self.child = Child(command, now)
        self.watch = EngineWatch(socket_path, self.child.pid, stall_timeout_s)

    def end_gently(self) -> None:
        """Let it finish its running sequences, then end."""
        self.watch.close()
        self.child.send(signal.SIGTERM)

    def end_now(self) -> None:
        """Kill it."""
        self.watch.close()
        self.child.kill()


class Successor(Engine):
    """An engine that is to replace the serving one. Call :meth:`advance` often."""

    def __init__(self, command: Command, socket_path: Path, stall_timeout_s: float, now: float) -> None:
        self._main, self._trial, self._next = socket_path, trial_path(socket_path), next_path(socket_path)
        self._stall_timeout_s = stall_timeout_s
        self._asked_at: float | None = None
        self._offered_at: float | None = None
        self.failure = ""
        self._forget_names()
        environment = {**command.environment, _SOCKET_VARIABLE: str(self._trial)}
        super().__init__(replace(command, environment=environment), self._trial, stall_timeout_s, now)

    def advance(self, now: float) -> bool:
        """Do the next step if it is due; True when it may take over. After a ``failure`` it never may."""
        code = self.child.exit_code()
        if code is not None:
            self.failure = ending(code)
            return False
        self.watch.poll(now)
        if not self.watch.ready:
            return False
        if self._asked_at is None:
            self._asked_at = now
            self.watch.ask()
        elif self._offered_at is None:
            self._offer_when_answered(now, self._asked_at)
        elif not self.watch.is_adopted and now - self._offered_at > _ADOPTION_TIMEOUT_S:
            self.failure = "was not accepted by the web process (its log says why)"
        return self.watch.is_adopted and not self.failure

    def take_over(self) -> None:
        """Give its socket the name that everybody connects to."""
        for name in (self._trial, self._next):
            if name.exists():
                rename(name, self._main)
        self.watch.move(self._main)

    @property
    def has_answered(self) -> bool:
        """Whether it answered the supervisor's question."""
        return self._offered_at is not None

    def end_now(self) -> None:
        """Kill it and remove its sockets."""
        super().end_now()
        self._forget_names()

    def _offer_when_answered(self, now: float, asked_at: float) -> None:
        answer = self.watch.answer
        if answer == "right":
            rename(self._trial, self._next)
            self.watch.move(self._next)
            self._offered_at = now
            _log.info("the new engine (process %d) answers; the web process may connect to it", self.child.pid)
        elif answer == "wrong" or now - asked_at > self._stall_timeout_s:
            self.failure = "did not answer"

    def _forget_names(self) -> None:
        for name in (self._trial, self._next):
            name.unlink(missing_ok=True)


def ending(code: int) -> str:
    """How a child ended, in words."""
    if code == -signal.SIGALRM:
        return "did not load its model within engine.load_timeout_s"
    return f"ended with code {code}"
