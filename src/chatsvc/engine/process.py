"""The engine process: hardened, one model, one loop, a unix socket. No network, no HTTP.

Its only thread besides the runner's own compiles grammars.

Its phases: load, warm up, bind the socket (so a connection always finds a model that has answered), serve, and drain on
SIGTERM or SIGINT. Exit codes are below.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import signal
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Protocol, Self

from chatsvc.engine.engine_side.connections import Clients
from chatsvc.engine.engine_side.loop import Loop, LoopOptions
from chatsvc.engine.protocol import Hello
from chatsvc.engine.runners.base import Runner, RunnerOptions
from chatsvc.engine.runners.choice import load_runner
from chatsvc.engine.sockets import Listener
from chatsvc.errors import OperatorError
from chatsvc.models.card import ModelCard

_log = logging.getLogger(__name__)

EXIT_DRAINED = 0
EXIT_COULD_NOT_START = 3
EXIT_FAILED = 3

_PR_SET_DUMPABLE = 4
_M_ARENA_MAX = -8


class Model(Protocol):
    """What the engine needs of a model folder; :class:`chatsvc.models.store.ModelFolder` is one."""

    @property
    def format(self) -> str:
        """``gguf``, ``openvino`` or ``safetensors``."""

    def card(self) -> ModelCard:
        """What the model is."""

    def weights(self) -> AbstractContextManager[Path]:
        """A path that a runner can open while the context lasts."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The options of an engine process. When loading takes longer than ``load_timeout_s`` SIGALRM ends it."""

    socket_path: Path
    model: Model
    runner: RunnerOptions = field(default_factory=RunnerOptions)
    loop: LoopOptions = field(default_factory=LoopOptions)
    load_timeout_s: float = 600.0


def run(options: EngineOptions) -> int:
    """Run the engine until drained; returns the exit code."""
    harden()
    with _Signals() as signals:
        try:
            runner = _load(options)
            options.socket_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            listener = Listener(options.socket_path)
        except OperatorError as error:
            _log.error("the engine cannot start: %s", error.message)
            return EXIT_COULD_NOT_START
        except OSError as error:
            _log.error("the engine cannot start: %s", error)
            return EXIT_COULD_NOT_START
        hello = Hello(card=runner.card, max_num_seqs=runner.max_num_seqs, pid=os.getpid())
        loop = Loop(runner, Clients(listener, hello), options.loop)
        signals.drain(loop)
        _log.info("serving %s with the %s runner", runner.card.name, runner.card.runner)
        try:
            loop.run()
        except Exception:  # noqa: BLE001 - the process' edge: whatever it is, it is in the log, and the supervisor starts anew
            _log.exception("the engine failed")
            return EXIT_FAILED
    _log.info("drained")
    return EXIT_DRAINED


def harden() -> None:
    """No core dump, no debugger of the same account, private files, few malloc arenas (native threads make many)."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE) failed")
    libc.mallopt(_M_ARENA_MAX, 2)


def load(model: Model, options: RunnerOptions) -> Runner:
    """Load the model and warm it up.

    Raises:
        OperatorError: it is refused, or no runner serves it.
    """
    card = model.card()
    with model.weights() as path:
        runner = load_runner(path, model.format, card, options)
        runner.warm_up()
    return runner


def _load(options: EngineOptions) -> Runner:
    """Load within the time limit. A hanging library holds the GIL, so only SIGALRM's default action can end it."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, options.load_timeout_s)
    runner = load(options.model, options.runner)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return runner


class _Signals:
    """SIGTERM and SIGINT: they end the process before the loop exists, and drain it afterwards."""

    def __init__(self) -> None:
        self._loop: Loop | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def drain(self, loop: Loop) -> None:
        """From now on a signal drains ``loop``."""
        self._loop = loop

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self._loop is None:
            raise SystemExit(EXIT_DRAINED)
        self._loop.request_drain()
