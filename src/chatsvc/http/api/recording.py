"""Acts in the audit log: a durable ``begin`` before, an ``end`` with the outcome after. Knows nothing of the acts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from chatsvc.audit.facts import Facts, Result
from chatsvc.audit.log import AuditLog
from chatsvc.errors import AuditUnavailable, ChatsvcError, RequestError
from chatsvc.guard.credentials.sessions import RefreshTokenReused
from chatsvc.guard.outbox import Change
from chatsvc.http.wire import context, problems

Done = TypeVar("Done")
Who = TypeVar("Who")


def recorded(
    audit: AuditLog,
    facts: Facts,
    act: Callable[[], Done],
    details: Callable[[Done], Mapping[str, Any]] = lambda _: {},
) -> Done:
    """Act between a durable ``begin`` and an ``end`` that says how it went.

    Raises:
        AuditUnavailable: nothing was done.
    """
    with audit.begin(facts) as record:
        try:
            done = act()
            record.result = Result("allowed", status=200, details=details(done))
        except ChatsvcError as error:
            record.result = _result_of(error)
            raise
        return done


def recorded_attempt(
    audit: AuditLog,
    facts: Facts,
    check: Callable[[], Who],
    enter: Callable[[Who], Done],
    details: Callable[[Done], Mapping[str, Any]],
) -> Done:
    """As :func:`recorded`, for a login: ``check`` identifies the caller, ``enter`` starts the session.

    For an address with many failures nothing is recorded before ``check``, and a failure is only counted: a flood of
    guesses with fresh names must not fill the disk. No session starts without a ``begin``, and nothing is checked while
    the log cannot be written.

    Raises:
        AuditUnavailable: nothing was checked.
    """
    if not audit.is_failing_often(facts):
        try:
            return recorded(audit, facts, lambda: enter(check()), details)
        except AuditUnavailable:
            raise
        except ChatsvcError:
            audit.count_failure(facts, is_recorded=True)
            raise
    if audit.problem() is not None:
        raise AuditUnavailable
    try:
        who = check()
    except ChatsvcError:
        audit.count_failure(facts, is_recorded=False)
        raise
    return recorded(audit, facts, lambda: enter(who), details)


def _result_of(error: ChatsvcError) -> Result:
    status = problems.status_and_type(error)[0]
    reason = getattr(error, "reason", None) or error.code
    details: dict[str, object] = {}
    if isinstance(error, RefreshTokenReused):
        details = {"ended_session": error.sid}
    return Result("denied" if isinstance(error, RequestError) else "error", status, reason, details=details)


def recorded_change(audit: AuditLog, action: str, act: Callable[[], Change]) -> dict[str, Any]:
    """Make and record an administrator's change; returns the state after it."""
    done = recorded(audit, context.facts(f"admin.{action}"), act, details=Change.as_details)
    return done.after or {}


def recorded_key(audit: AuditLog, action: str, act: Callable[[], tuple[str, Change]]) -> dict[str, Any]:
    """The same for an act that makes a secret: the returned value has it as ``key``, the record does not."""
    facts = context.facts(f"admin.{action}")
    secret, change = recorded(audit, facts, act, details=lambda done: done[1].as_details())
    return {"key": secret, **(change.after or {})}
