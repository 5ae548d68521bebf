"""Administrative acts on their way into the audit log. Knows the table, not the log's format.

The web process holds the audit log's lock, so a command cannot write to it. A command therefore writes its act and the
record of it in one transaction, and whoever holds the log next (the web process, within a second of its next request,
or the next one that starts) moves the records over. A record is deleted only after it is durable in the log: after a
crash in between it is there twice, never not at all.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from chatsvc.guard.accounts.changes import Change, OnChange
from chatsvc.store.database import Database
from chatsvc.store.tables import OutboxRecord

Recorder = Callable[[str, str, Mapping[str, Any]], None]
"""Makes one record durable: (action, actor, details)."""

_BATCH = 100


def put_into_outbox(actor: str, *, clock: Callable[[], float] = time.time) -> OnChange:
    """For who does not hold the log: adds the record of every change to the change's own transaction."""

    def note(session: Session, action: str, change: Change) -> None:
        text = json.dumps(change.as_details(), ensure_ascii=False, sort_keys=True)
        session.add(OutboxRecord(at=clock(), action=action, actor=actor, details=text))

    return note


class Outbox:
    """Moves records into the log, at most once in ``every_s`` and one thread at a time."""

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
        """Call it often; it mostly does nothing."""
        if self._clock() < self._due_at or not self._busy.acquire(blocking=False):
            return
        try:
            self._due_at = self._clock() + self._every_s
            self.drain()
        finally:
            self._busy.release()

    def drain(self) -> int:
        """Move all that is there; returns how many. What the log refuses stays."""
        with self._database.reading() as session:
            rows = session.execute(select(OutboxRecord).order_by(OutboxRecord.id).limit(_BATCH)).scalars().all()
        for row in rows:
            details = {**json.loads(row.details), "at": row.at}
            self._record(row.action, row.actor, details)
            with self._database.session() as session:
                session.execute(delete(OutboxRecord).where(OutboxRecord.id == row.id))
        return len(rows)
