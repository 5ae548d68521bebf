"""Opens a log for an operator's command, even while the service holds the main one.

A command that changes something is recorded like a request. The main log has one writer; while that is the service, the
command writes a log of its own beside it (``commands/``, another ``log_id``), which verify, show and export read too.
"""

from __future__ import annotations

from dataclasses import replace

from chatsvc.audit.log import AuditLog
from chatsvc.audit.options import AuditOptions
from chatsvc.disk.lock import LockHeld
from chatsvc.errors import AuditUnavailable

ASIDE = "commands"


def open_for_command(options: AuditOptions) -> AuditLog:
    """The main log if no process writes it, else the one beside it.

    Raises:
        AuditUnavailable, OperatorError: as :meth:`chatsvc.audit.log.AuditLog.open`.
    """
    try:
        return AuditLog.open(replace(options, lock_timeout_s=0))
    except AuditUnavailable as error:
        if not isinstance(error.__cause__, LockHeld):
            raise
    return AuditLog.open(replace(options, directory=options.directory / ASIDE))
