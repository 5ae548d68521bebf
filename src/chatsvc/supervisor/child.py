"""A child process of the supervisor: it has its own process group, and the kernel ends it with the supervisor.

Knows nothing about what the child does.
"""

from __future__ import annotations

import ctypes
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Command:
    """How to start a child.

    Attributes:
        name: for messages.
        arguments: the program and its arguments; no secrets, because every account can read them.
        environment: the whole environment.
        death_signal: what the kernel sends when the supervisor dies.
        log: the file that its output is appended to; None: the supervisor's own output.
    """

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str] = field(repr=False)
    death_signal: signal.Signals = signal.SIGKILL
    log: Path | None = None


class Child:
    """A running child. Signals of the terminal do not reach it; only the supervisor sends it signals."""

    def __init__(self, command: Command, started_at: float) -> None:
        self.command = command
        self.started_at = started_at
        output = command.log.open("ab") if command.log else None
        try:
            self._process = subprocess.Popen(  # noqa: S603  (our own programs, no shell)
                list(command.arguments),
                env=dict(command.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,
                # Safe here: the supervisor has one thread, so no other thread can hold a lock at the fork.
                preexec_fn=_before_exec(command.death_signal),  # noqa: PLW1509
            )
        finally:
            if output:
                output.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it runs; negative if a signal ended it."""
        return self._process.poll()

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens if it has ended."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it and wait for its end. gunicorn's worker ends with it (config/gunicorn.conf.py)."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()


def _before_exec(death_signal: signal.Signals) -> Callable[[], None]:
    prctl = ctypes.CDLL(None).prctl

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())  # the supervisor blocks the signals that it waits for

    return prepare
