"""The audit log as the service sees it: many callers, one writer thread, group commit.

``begin`` and ``event`` return when their record is on the disk; one fdatasync serves all records that arrived
meanwhile. While the disk is full both are refused at once, ends wait in memory, and the writer retries every
``retry_s``. After an fsync error, or an unknown one, the log is dead until a restart. Open it in the process that uses
it: a thread does not survive a fork.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack
from typing import Literal, Self

from chatsvc.audit.facts import Facts, OpenRecord, Result
from chatsvc.audit.options import AuditOptions
from chatsvc.audit.witness.publisher import Publisher, witnesses_of
from chatsvc.audit.write.denials import Denials
from chatsvc.audit.write.journal import Draft, Journal
from chatsvc.audit.write.opening import open_journal, open_mirror
from chatsvc.audit.write.timekeeping import Clock, system_clock
from chatsvc.disk.append import SYSTEM, Calls, DiskFailed, DiskFull
from chatsvc.disk.lock import LockHeld
from chatsvc.errors import AuditUnavailable

Condition = Literal["open", "full", "dead", "closed"]

# Why nothing can be written, as /healthz tells anybody: without path and cause, which are in the process's own log.
PROBLEMS: dict[Condition, str | None] = {
    "open": None,
    "full": "there is no space on its disk",
    "dead": "its disk or its writer failed, or its file was removed; it is not retried before a restart",
    "closed": "it is closed",
}
SILENT = "its disk does not answer"
_log = logging.getLogger(__name__)
_TICK_S = 0.25
FAILED = "login_failed"  # the reason in a record that sums up many failed logins
_PUBLISH_S = 5  # how long close() waits for witnesses to take the last checkpoint
_MAX_FAILING_PLACES = 64
_NUM_SINGLE_FAILURES = 5  # failed logins of an address in one window; further ones are only counted
_ABANDONED = "abandoned: the disk did not answer in time"


class _Batch:
    """Records that are committed together, and the one event their callers wait for."""

    def __init__(self) -> None:
        self.drafts: list[Draft] = []
        self.done = threading.Event()


class AuditLog:
    """One log. Call ``AuditLog.open`` once per process, and ``close`` at the end."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._options = journal.options
        window_s = self._options.denial_window_s
        self._denials = Denials(window_s, self._options.max_denials_in_window)
        self._failures = Denials(window_s, _MAX_FAILING_PLACES, _NUM_SINGLE_FAILURES)
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._batch = _Batch()
        self._owed: list[Draft] = []  # ends that wait for disk space
        self._num_refused = 0
        self._told: set[str] = set()
        self._state: Condition = "open"
        self._cause: str | None = None
        self._committing_since: float | None = None
        self._retry_at = 0.0
        self._publisher = Publisher(witnesses_of(self._options))
        journal.tell_notes_to(self._publisher.send)
        self._threads = [
            threading.Thread(target=self._run, name="audit-writer", daemon=True),
            threading.Thread(target=self._publisher.run, name="audit-witness", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @classmethod
    def open(cls, options: AuditOptions, *, clock: Clock | None = None, calls: Calls = SYSTEM) -> Self:
        """Open the log, or begin a new one.

        Raises:
            AuditUnavailable: it cannot be written at present (another process writes it, no space, a failing disk).
            OperatorError: it is damaged, or a key is missing; the message says what to do.
        """
        with ExitStack() as opened:
            try:
                mirror = open_mirror(options, calls, opened)
                log = cls(open_journal(options, clock or system_clock(), mirror))
            except (LockHeld, DiskFull, DiskFailed, OSError) as error:
                raise AuditUnavailable(f"The audit log cannot be written: {error}") from error
            opened.pop_all()
        return log

    # -- called by other threads

    def begin(self, facts: Facts) -> OpenRecord:
        """Record an act before it begins. Durable on return.

        Raises:
            AuditUnavailable: it is not recorded, so it must not be done.
        """
        begin = self._commit(self._journal.draft("begin", facts))
        return OpenRecord(facts, lambda result: self._finish(facts, begin, result))

    def event(self, facts: Facts, result: Result) -> None:
        """Record an act that is already over. Durable on return.

        Raises:
            AuditUnavailable: it is not recorded, so it must not be done.
        """
        self._commit(self._journal.draft("event", facts, result))

    def count_denial(self, facts: Facts, reason: str) -> None:
        """Count a refusal of an unknown caller: the first of a kind gets a record, the rest of a window one sum.

        Does not wait for the disk, so a flood of refusals costs neither time nor space.
        """
        with self._wake:
            if self._denials.is_news(facts, reason, time.monotonic(), can_write=self._state == "open"):
                self._enqueued(self._journal.draft("event", facts, Result("denied", reason=reason)))

    def is_failing_often(self, facts: Facts) -> bool:
        """Whether failures of this action from this address are only counted for now."""
        with self._lock:
            return self._failures.is_spent(facts, FAILED)

    def count_failure(self, facts: Facts, *, is_recorded: bool) -> None:
        """Count a failed login. ``is_recorded``: it already has a begin and an end; else this may record an event.

        Does not wait for the disk, as :meth:`count_denial`.
        """
        with self._wake:
            if is_recorded:
                self._failures.recorded(facts, FAILED, time.monotonic())
            elif self._failures.is_news(facts, FAILED, time.monotonic(), can_write=self._state == "open"):
                self._enqueued(self._journal.draft("event", facts, Result("denied", reason=FAILED)))

    def problem(self) -> str | None:
        """None while records can be written; else the reason, without path or cause."""
        since = self._committing_since
        if since is not None and time.monotonic() - since > self._options.commit_timeout_s:
            return SILENT
        return PROBLEMS[self._state]

    def alarms(self) -> list[str]:
        """Active alarms: a stopped log, a flood, the clock, a device, disk space, a witness."""
        cause = self._cause  # the writer thread replaces it as a whole
        stopped = [f"nothing can be written: {cause}"] if cause else []
        with self._lock:
            floods = self._failures.alarms(time.monotonic())
        return [
            *stopped,
            *floods,
            *self._journal.alarms(),
            *self._journal.mirror.alarms(self._options.space_alarm),
            *self._publisher.alarms(),
        ]

    def close(self) -> None:
        """Write what is queued and a last checkpoint, then close. Later calls are refused."""
        with self._wake:
            if self._state == "closed":
                return
            was, self._state = self._state, "closed"
            self._wake.notify()
        self._threads[0].join(2 * self._options.commit_timeout_s)
        if self._threads[0].is_alive():
            _log.critical("the audit log was closed while its disk did not answer")
            return
        if was != "dead":
            self._finish_writing()
        self._publisher.stop()
        self._threads[1].join(_PUBLISH_S)
        self._journal.close()

    # -- how a record is written

    def _finish(self, facts: Facts, begin: Draft, result: Result) -> None:
        """Write the end of ``begin``."""
        draft = self._journal.draft("end", facts, result, begin=begin.seq)
        draft.fields["duration_ms"] = (draft.moment.mono_us - begin.moment.mono_us) // 1000
        with self._wake:
            if self._state == "full":
                self._owed.append(draft)
                return
            batch = self._enqueued(draft) if self._state == "open" else None
        if batch is not None:
            batch.done.wait(self._options.commit_timeout_s)  # after a time-out the writer still writes it
        if batch is None or (draft.seq is None and self._state == "dead"):
            _log.critical("the end of a record was lost", extra={"request_id": facts.request_id})

    def _enqueued(self, draft: Draft) -> _Batch:
        self._batch.drafts.append(draft)
        self._wake.notify()
        return self._batch

    def _commit(self, draft: Draft) -> Draft:
        with self._wake:
            if self._state != "open":
                self._num_refused += 1
                raise AuditUnavailable
            batch = self._enqueued(draft)
        batch.done.wait(self._options.commit_timeout_s)
        with (
            self._lock
        ):  # the writer reads `abandoned` under this lock: so one of the two threads always sees the other's mark
            draft.abandoned = draft.seq is None
        if draft.abandoned:
            raise AuditUnavailable
        return draft

    # -- the writer thread

    def _run(self) -> None:
        while True:
            with self._wake:
                if not self._batch.drafts and self._state in ("open", "full"):
                    self._wake.wait(_TICK_S)
                batch, self._batch = self._batch, _Batch()
                state = self._state
            try:
                if state in ("open", "closed"):
                    self._write(batch)
                elif state == "full":
                    self._keep(batch.drafts)
                    self._try_again()
            except DiskFull as error:
                self._set("full", error.message)
            except DiskFailed as error:
                self._set("dead", error.message)
            except Exception as error:  # noqa: BLE001 - the thread's edge: whatever it is, nothing may be done without a record
                _log.exception("the audit log's writer failed")
                self._set("dead", f"the writer failed: {type(error).__name__}")
            finally:
                self._committing_since = None
                batch.done.set()
            if state in ("closed", "dead"):
                return

    def _write(self, batch: _Batch) -> None:
        now = time.monotonic()
        self._committing_since = now
        if now >= self._retry_at:
            self._retry_at = now + self._options.retry_s
            self._journal.mirror.catch_up()
        with self._lock:
            owed, self._owed = [*self._owed, *self._sums(now)], []
        self._commit_all([*owed, *batch.drafts])
        batch.done.set()
        if self._journal.checkpoint_is_due():
            self._journal.checkpoint()
            self._tell_alarms()

    def _tell_alarms(self) -> None:
        alarms = set(self.alarms())
        for alarm in sorted(alarms - self._told):
            _log.error("audit log: %s", alarm)
        self._told = alarms

    def _commit_all(self, drafts: list[Draft]) -> None:
        """Commit records; while the disk is full, keep those of acts that have already happened."""
        try:
            self._journal.keep_up()
            if drafts:
                self._journal.commit(drafts)
        except DiskFull:
            self._keep(drafts)
            raise
        with self._lock:
            abandoned = [each for each in drafts if each.abandoned and each.fields["stage"] == "begin"]
            self._owed += [self._journal.aborted(each.seq, each.fields, _ABANDONED) for each in abandoned]

    def _keep(self, drafts: list[Draft]) -> None:
        """Ends and sums describe what has already happened, so they wait for space; a begin or an event is refused."""
        kept = [each for each in drafts if each.fields["stage"] == "end" or "suppressed" in each.fields]
        with self._lock:
            self._owed[:0] = kept

    def _sums(self, now: float) -> list[Draft]:
        sums = [*self._denials.take_sums(now), *self._failures.take_sums(now)]
        return [
            self._journal.draft("event", each[0], Result("denied", reason=each[1]), suppressed=each[2]) for each in sums
        ]

    def _try_again(self) -> None:
        """After a full disk: write pending ends and the number of refusals; then accept records again."""
        now = time.monotonic()
        if now < self._retry_at:
            return
        self._retry_at = now + self._options.retry_s
        with self._lock:
            owed, self._owed = self._owed, []
            refused = self._num_refused
        self._commit_all([*owed, self._journal.own("audit.resumed", num_refused=refused)])
        with self._lock:
            self._num_refused -= refused
            if self._state == "full":
                self._state, self._cause = "open", None
        _log.warning("the audit log can be written again; %d records were refused meanwhile", refused)

    def _set(self, state: Condition, cause: str) -> None:
        with self._lock:
            changed, self._cause = self._cause != cause, cause
            if self._state != "closed":
                self._state = state
        if changed:
            _log.critical("the audit log cannot be written: %s", cause)

    def _finish_writing(self) -> None:
        """After the thread has ended: write pending ends, the last sums, the stop record and a last checkpoint."""
        try:
            self._journal.keep_up()
            with self._lock:
                self._journal.commit([*self._owed, *self._sums(float("inf")), self._journal.own("audit.stop")])
            self._journal.checkpoint()
        except (DiskFull, DiskFailed) as error:
            _log.critical("the audit log was closed without its last records: %s", error.message)
