"""Administrative changes, and the outbox that takes them from the database into the audit log.

The web process holds the audit log's lock, so a command cannot write to the log. A command stores a record in the same
transaction as its change. The web process moves such records into the log, within a second of its next request or at
its next start. A record is deleted only once it is durable in the log: after a crash in between, the log holds it
twice, but never misses it. Knows the outbox table, not the log's format.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from chatsvc.store.database import Database
from chatsvc.store.tables import OutboxRecord

Recorder = Callable[[str, str, Mapping[str, Any]], None]
"""Makes one audit record durable: (action, actor, details)."""

_BATCH = 100


@dataclass(frozen=True, slots=True)
class Change:
    """Something before and after an administrative act; None where it did not exist."""

    before: dict[str, Any] | None
    after: dict[str, Any] | None

    def as_details(self) -> dict[str, Any]:
        """The details of an audit record."""
        return {"before": self.before, "after": self.after}


OnChange = Callable[[Session, str, Change], None]
"""Called with the action's name inside the act's transaction: what it writes is committed with the act."""


def note_nothing(_session: Session, _action: str, _change: Change) -> None:
    """For the web process, which records its acts in the audit log directly."""


def put_into_outbox(actor: str, *, clock: Callable[[], float] = time.time) -> OnChange:
    """For a process that does not hold the log: stores the record of each change in the change's transaction."""

    def note(session: Session, action: str, change: Change) -> None:
        text = json.dumps(change.as_details(), ensure_ascii=False, sort_keys=True)
        session.add(OutboxRecord(at=clock(), action=action, actor=actor, details=text))

    return note


class Outbox:
    """Moves stored records into the log: at most every ``every_s`` seconds, one thread at a time."""

    def __init__(
        self,
        database: Database,
        record: Recorder,
        *,
        every_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._record = record
        self._every_s = every_s
        self._clock = clock
        self._due_at = float("-inf")
        self._busy = threading.Lock()

    def drain_if_due(self) -> None:
        """Drain if the interval has passed and no other thread is draining; else do nothing."""
        if self._clock() < self._due_at or not self._busy.acquire(blocking=False):
            return
        try:
            self._due_at = self._clock() + self._every_s
            self.drain()
        finally:
            self._busy.release()

    def drain(self) -> int:
        """Move up to 100 records, the oldest first; returns how many. Those that the log refuses stay.

        Raises:
            AuditUnavailable: the log cannot be written.
            StoreUnavailable: the database is down.
        """
        with self._database.reading() as session:
            rows = session.execute(select(OutboxRecord).order_by(OutboxRecord.id).limit(_BATCH)).scalars().all()
        for row in rows:
            details = {**json.loads(row.details), "at": row.at}
            self._record(row.action, row.actor, details)
            with self._database.session() as session:
                session.execute(delete(OutboxRecord).where(OutboxRecord.id == row.id))
        return len(rows)
