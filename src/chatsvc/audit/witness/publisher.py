"""Sends checkpoints to witnesses: places that the owner of this host cannot rewrite.

A witness that cannot be reached raises an alarm, and the service continues; the next checkpoint covers what it missed.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Sequence

from chatsvc.audit.options import AuditOptions
from chatsvc.audit.witness.database import DatabaseWitness
from chatsvc.audit.witness.files import FileWitness, SyslogWitness, Witness, WitnessRefuses
from chatsvc.audit.witness.peer import PeerWitness
from chatsvc.disk.append import DiskFailed, DiskFull
from chatsvc.errors import StoreUnavailable

_log = logging.getLogger(__name__)
_MAX_WAITING = 256


def witnesses_of(options: AuditOptions) -> list[Witness]:
    """The witnesses that the options name."""
    witnesses: list[Witness] = [FileWitness(path) for path in options.witness_files]
    if options.witness_syslog:
        witnesses.append(SyslogWitness(options.witness_syslog))
    if options.witness_url:
        witnesses.append(DatabaseWitness(options.witness_url))
    if options.witness_peer:
        witnesses.append(PeerWitness(options.witness_peer, options.directories))
    return witnesses


class Publisher:
    """A queue of notes and the loop that sends them; the log gives it a thread."""

    def __init__(self, witnesses: Sequence[Witness]) -> None:
        self._witnesses = list(witnesses)
        self._waiting: queue.Queue[str | None] = queue.Queue(_MAX_WAITING)
        self._why: dict[str, str] = {}

    def alarms(self) -> list[str]:
        """A sentence for every witness that does not have the latest checkpoint."""
        return [f"the witness {name} does not accept checkpoints: {why}" for name, why in self._why.items()]

    def send(self, note: str) -> None:
        """Queue a note to be sent. When the queue is full it is dropped: a later checkpoint covers it."""
        try:
            self._waiting.put_nowait(note)
        except queue.Full:
            self._why["queue"] = "no answer, and too many checkpoints are waiting"

    def stop(self) -> None:
        """Send what is queued, then end the loop."""
        self._waiting.put(None)

    def run(self) -> None:
        """Send notes until stopped."""
        while (note := self._waiting.get()) is not None:
            self._why.pop("queue", None)
            for witness in self._witnesses:
                self._publish(witness, note)
        for witness in self._witnesses:
            witness.close()

    def _publish(self, witness: Witness, note: str) -> None:
        try:
            witness.publish(note)
        except (OSError, DiskFull, DiskFailed, WitnessRefuses, StoreUnavailable) as error:
            if witness.name not in self._why:
                _log.error("the witness %s does not accept checkpoints: %s", witness.name, error)
            self._why[witness.name] = str(error)
        else:
            self._why.pop(witness.name, None)
