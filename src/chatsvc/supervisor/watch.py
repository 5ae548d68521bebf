"""Watches one engine process over its socket: has it answered its warm-up, and does it make progress?

Slow is not hung: an engine is hung when nothing at all was heard of it, or no step was done while sequences run, for
longer than the limit. Knows nothing about starting or ending processes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

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
from chatsvc.engine.sockets import Connection, connect

_MAX_UNSENT_BYTES = 4096


class EngineWatch:
    """What is known of the engine with process id ``pid`` behind ``socket_path``. Call :meth:`poll` often."""

    def __init__(self, socket_path: Path, pid: int, stall_timeout_s: float) -> None:
        self.ready = False
        self.is_adopted = False
        self.num_running = 0
        self.answer: Literal["", "right", "wrong"] = ""
        self._socket_path = socket_path
        self._pid = pid
        self._stall_timeout_s = stall_timeout_s
        self._connection: Connection | None = None
        self._num_steps = -1
        self._heard_at = 0.0
        self._progress_at = 0.0

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
        return self.ready and now - min(self._heard_at, self._progress_at) > self._stall_timeout_s

    def ask(self) -> None:
        """Have it say one token; :attr:`answer` becomes ``right`` or ``wrong`` with a later :meth:`poll`."""
        if self._connection is not None:
            question = Submit(sequence_id=1, prompt_ids=[0], sampling=Sampling(max_tokens=1, temperature=0))
            self._connection.send(encode_frame(question))

    def move(self, socket_path: Path) -> None:
        """From now on it is reached under another name; a connection that is open stays."""
        self._socket_path = socket_path

    def close(self) -> None:
        """Give the connection back."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> None:
        try:
            self._connection = Connection(connect(self._socket_path), max_unsent_bytes=_MAX_UNSENT_BYTES)
        except OSError:
            return  # not there yet, or not there any more: the time of the last word decides

    def _take(self, payload: bytes, now: float) -> None:
        frame = decode_to_web(payload)
        if isinstance(frame, Hello):
            if frame.pid != self._pid:
                raise ProtocolError("the name still belongs to the engine before this one")
            self.ready = True
            self._progress_at = now
        elif isinstance(frame, Heartbeat):
            if frame.num_steps != self._num_steps or frame.num_running == 0:
                self._progress_at = now
            self._num_steps = frame.num_steps
            self.num_running = frame.num_running
            self.is_adopted = frame.is_adopted
        elif isinstance(frame, Finished):
            self.answer = "wrong" if frame.reason == "error" else "right"
        self._heard_at = now
