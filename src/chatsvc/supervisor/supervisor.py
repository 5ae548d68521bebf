"""Keeps an engine and a web process running: start, restart with back-off, replace a hung engine, swap, drain.

One thread and no signal handlers: signals are blocked and received with sigtimedwait, so they never interrupt other
code. A :class:`Plan` says what the children are and how to tell that the service answers. Knows nothing about settings.

1. SIGTERM, SIGINT: drain, then end. The engine announces that it drains, and the web process refuses new requests.
   When the running streams have finished, or shortly before the deadline, the web process is told to end. A second
   signal ends it at once.
2. SIGHUP: switch to the active model. A new engine starts beside the old one; once it answers and the web process has
   taken the new model, the old engine finishes its streams (:mod:`chatsvc.supervisor.swap`). If memory is too small
   for two engines, the old one finishes first.
3. A child that ends is restarted, at once the first time, then with exponential back-off.
4. A hung engine is killed, then restarted by rule 3.
5. A child that fails before the service has ever answered ends the service: a restart does not help against refused
weights. A child
   that was killed by a signal is restarted a few times.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from chatsvc.supervisor.child import Child, Command
from chatsvc.supervisor.swap import Engine, Successor, ending

_log = logging.getLogger(__name__)

_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD})
_POLL_S = 0.2
_FIRST_PAUSE_S = 0.5
_MAX_PAUSE_S = 30.0
_STEADY_S = 60.0  # a child that ran this long starts with the shortest pause again
_WEB_MARGIN_S = 3.0  # of the drain deadline, kept for the web process to end its streams with an error event
_HURRY_AFTER_S = 2.0  # `make` and the terminal may both pass on one Ctrl-C, which is not a second signal
_PROBE_INTERVAL_S = 0.5
_MAX_KILLED_EARLY = 3

EXIT_STOPPED = 0
EXIT_COULD_NOT = 3


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes to keep running.

    Attributes:
        engine: how to start the engine.
        web: how to start the web process.
        engine_socket: where the engine listens.
        answers: whether the whole service answers now; called until it does.
        on_ready: called once, when it first answers.
        two_engines_fit: whether memory holds a second engine, given the process id of the running one.
    """

    engine: Command
    web: Command
    engine_socket: Path
    drain_timeout_s: float
    stall_timeout_s: float
    answers: Callable[[], bool]
    on_ready: Callable[[], None]
    two_engines_fit: Callable[[int], bool]


class _Pauses:
    """The back-off before a child is restarted: no pause at first, then doubling."""

    def __init__(self) -> None:
        self._next_s = 0.0

    def after(self, ran_s: float) -> float:
        """The pause after a child that ran for so long."""
        if ran_s >= _STEADY_S:
            self._next_s = 0.0
        pause_s, self._next_s = self._next_s, min(max(self._next_s * 2, _FIRST_PAUSE_S), _MAX_PAUSE_S)
        return pause_s


class Supervisor:
    """Keeps the processes running until it is told to stop."""

    def __init__(self, processes: Processes, clock: Callable[[], float] = time.monotonic) -> None:
        self._processes = processes
        self._clock = clock
        self._engine: Engine | None = None
        self._successor: Successor | None = None
        self._finishing: list[Engine] = []
        self._one_at_a_time = False
        self._web: Child | None = None
        self._engine_pauses, self._web_pauses = _Pauses(), _Pauses()
        self._engine_start_at = self._web_start_at = 0.0
        self._probe_at = 0.0
        self._has_answered = False
        self._num_killed_early = 0
        self._failure: int | None = None

    def run(self) -> int:
        """Serve; returns the exit code. No child runs any more when it returns."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            while self._failure is None:
                received = signal.sigtimedwait(_SIGNALS, _POLL_S)
                if received is not None and received.si_signo in {signal.SIGTERM, signal.SIGINT}:
                    self._drain()
                    return EXIT_STOPPED
                if received is not None and received.si_signo == signal.SIGHUP:
                    self._swap()
                self._look_after_all()
            return self._failure
        finally:
            self._end_everything()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _look_after_all(self) -> None:
        now = self._clock()
        self._look_after_engine(now)
        self._look_after_successor(now)
        self._look_after_web(now)
        self._finishing = [engine for engine in self._finishing if engine.child.exit_code() is None]
        if not self._has_answered and self._failure is None and now >= self._probe_at:
            self._probe_at = now + _PROBE_INTERVAL_S
            if self._engine and self._engine.watch.ready and self._processes.answers():
                self._has_answered = True
                self._processes.on_ready()

    def _look_after_engine(self, now: float) -> None:
        if self._engine is None:
            if now >= self._engine_start_at and not (self._one_at_a_time and self._finishing):
                self._one_at_a_time = False
                what = self._processes
                self._engine = Engine(what.engine, what.engine_socket, what.stall_timeout_s, now)
            return
        code = self._engine.child.exit_code()
        if code is not None:
            self._engine.watch.close()
            pause_s = self._note_end("engine", code, now - self._engine.child.started_at, self._engine_pauses)
            self._engine, self._engine_start_at = None, now + pause_s
            return
        self._engine.watch.poll(now)
        if self._engine.watch.is_hung(now):
            _log.error("the engine (process %d) makes no progress; it is replaced", self._engine.child.pid)
            self._engine.end_now()

    def _look_after_successor(self, now: float) -> None:
        if self._successor is None:
            return
        successor = self._successor
        takes_over = successor.advance(now)
        if successor.failure:
            _log.error("the new engine %s; the old one keeps serving its model", successor.failure)
            successor.end_now()
            self._successor = None
        elif takes_over:
            _log.info("the new engine (process %d) takes over; the old one finishes its streams", successor.child.pid)
            successor.take_over()
            if self._engine is not None:
                self._let_finish(self._engine)
            self._engine, self._successor = successor, None

    def _look_after_web(self, now: float) -> None:
        if self._web is None:
            if now >= self._web_start_at:
                self._web = Child(self._processes.web, now)
            return
        code = self._web.exit_code()
        if code is not None:
            pause_s = self._note_end("web process", code, now - self._web.started_at, self._web_pauses)
            self._web, self._web_start_at = None, now + pause_s

    def _note_end(self, what: str, code: int, ran_s: float, pauses: _Pauses) -> float:
        """Log that a child ended, and end the service by rule 5. Returns the pause before a restart."""
        is_killed = code < 0 and code != -signal.SIGALRM
        if not self._has_answered and is_killed:
            self._num_killed_early += 1
        if not self._has_answered and (not is_killed or self._num_killed_early >= _MAX_KILLED_EARLY):
            _log.error("the %s %s before the service was ready", what, ending(code))
            self._failure = EXIT_COULD_NOT
            return 0.0
        pause_s = pauses.after(ran_s)
        _log.error("the %s %s; it is restarted in %.1f s", what, ending(code), pause_s)
        return pause_s

    def _swap(self) -> None:
        if self._successor is not None:
            self._successor.end_now()  # it may be loading a model that is no longer active
            self._successor = None
        if self._engine is None or not self._engine.watch.ready:
            if self._engine is not None:
                self._engine.end_now()
            self._engine, self._engine_start_at = None, 0.0
            return
        if self._processes.two_engines_fit(self._engine.child.pid):
            _log.info("starting a new engine beside the old one")
            processes = self._processes
            self._successor = Successor(
                processes.engine, processes.engine_socket, processes.stall_timeout_s, self._clock()
            )
        else:
            _log.warning("memory is too small for two engines: the old one finishes first, new requests are refused")
            self._let_finish(self._engine)
            self._engine, self._engine_start_at = None, 0.0
            self._one_at_a_time = True

    def _let_finish(self, engine: Engine) -> None:
        engine.end_gently()
        self._finishing.append(engine)

    def _drain(self) -> None:
        started_at = self._clock()
        deadline = started_at + self._processes.drain_timeout_s
        _log.info("draining: new requests are refused, running streams have %.0f s", self._processes.drain_timeout_s)
        engines = [*self._finishing, *([self._engine] if self._engine else [])]
        if self._successor is not None:
            self._successor.end_now()
        for engine in engines:
            engine.end_gently()
        hurried = self._wait(
            lambda: all(engine.child.exit_code() is not None for engine in engines),
            until=max(deadline - _WEB_MARGIN_S, started_at + self._processes.drain_timeout_s / 2),
            started_at=started_at,
        )
        for engine in engines:
            engine.end_now()  # streams that still run end with an error event
        web = self._web
        if web is not None:
            web.send(signal.SIGQUIT if hurried else signal.SIGTERM)
            self._wait(lambda: web.exit_code() is not None, until=deadline, started_at=started_at)

    def _wait(self, done: Callable[[], bool], *, until: float, started_at: float) -> bool:
        """Wait until ``done`` or the deadline; True if a second signal came."""
        while not done() and self._clock() < until:
            received = signal.sigtimedwait(_SIGNALS, _POLL_S)
            again = received is not None and received.si_signo in {signal.SIGTERM, signal.SIGINT}
            if again and self._clock() > started_at + _HURRY_AFTER_S:
                return True
        return False

    def _end_everything(self) -> None:
        for engine in (self._engine, self._successor, *self._finishing):
            if engine is not None:
                engine.end_now()
        if self._web is not None:
            self._web.kill()
