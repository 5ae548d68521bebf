"""Records a command's act in the audit log; without a durable record the act is not done.

Accounts and keys go another way (``cli/accounts/open_guard.py``): their records are in the change's own
transaction.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from uuid import uuid4

from chatsvc.audit.command import open_for_command
from chatsvc.audit.facts import Facts, Result
from chatsvc.cli.accounts.open_guard import actor
from chatsvc.errors import ChatsvcError, ModelRefused
from chatsvc.settings.load import Settings
from chatsvc.wiring import audit_options

Details = dict[str, object]


@contextmanager
def recorded(settings: Settings, action: str, details: Details) -> Iterator[Details]:
    """A short act between its ``begin`` and ``end`` records; the end has what the block puts into ``details``.

    Raises:
        AuditUnavailable, OperatorError: there is no record, so nothing was done.
    """
    facts = Facts(uuid4().hex, action, actor())
    with closing(open_for_command(audit_options(settings))) as log, log.begin(facts) as record:
        record.result = Result("error", details=details)
        try:
            yield details
            record.result = Result("allowed", details=details)
        except ChatsvcError as error:
            record.result = _failed(error, details)
            raise


@contextmanager
def recorded_long(settings: Settings, action: str, details: Details) -> Iterator[Details]:
    """An act that may take an hour: two events with one request id, because a process must not hold the log that long.

    Raises:
        AuditUnavailable, OperatorError: there is no record, so nothing was done.
    """
    facts = Facts(uuid4().hex, action, actor())

    def tell(result: Result, step: str) -> None:
        with closing(open_for_command(audit_options(settings))) as log:
            log.event(facts, replace(result, details={**details, "step": step}))

    tell(Result("allowed"), "begins")
    try:
        yield details
    except BaseException as error:  # also after Ctrl-C
        failed = _failed(error, details) if isinstance(error, ChatsvcError) else Result("error")
        tell(failed, "failed")
        raise
    tell(Result("allowed"), "done")


def _failed(error: ChatsvcError, details: Details) -> Result:
    return Result(
        "denied" if isinstance(error, ModelRefused) else "error", reason=error.code or "could_not", details=details
    )
