"""Starts a server for the length of a ``with`` block and takes it down again. Knows nothing about which server."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.load import Target

_END_TIMEOUT_S = 60


def end_on_sigterm() -> None:
    """Let SIGTERM run the ``finally`` blocks that take servers down."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def free_port() -> int:
    """A port that nothing listens on at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(
    arguments: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The process with its output in ``log``; at the end it is asked to stop, then made to, with all it left behind."""
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [str(part) for part in arguments],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # vLLM's workers outlive their server


def wait_for(target: Target, path: str, process: subprocess.Popen[bytes], log: Path, timeout_s: float = 180) -> None:
    """Until ``path`` answers 200.

    Raises:
        RuntimeError: the process ended, or the time is over; the end of its log says why.
    """
    until = time.monotonic() + timeout_s
    while time.monotonic() < until and process.poll() is None:
        with (
            contextlib.suppress(OSError, http.client.HTTPException),
            contextlib.closing(target.connect(timeout_s=5)) as connection,
        ):
            connection.request("GET", path)
            with connection.getresponse() as answer:
                if answer.status == 200:
                    return
        time.sleep(0.25)
    ending = log.read_text(encoding="utf-8", errors="replace")[-3000:]
    raise RuntimeError(f"{target.name} did not become ready; its log ends:\n{ending}")
