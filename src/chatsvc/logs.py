"""The operational log: one JSON object per line on standard error, with secrets masked.

Our code never passes prompts, passwords, tokens or keys to a logger; masking is a second defence. Exceptions of
libraries are another way in: their messages quote statement parameters, request lines and invalid values. So a
traceback shows each exception's type and location, but its message only if that is known to quote no input. Knows
nothing about what is logged.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sqlite3
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from copy import copy
from typing import IO, Any

from chatsvc.errors import ChatsvcError

MASK = "[masked]"

_SECRETS = re.compile(
    r"csk_[A-Za-z0-9]+_[A-Za-z0-9_-]+"  # API keys
    r"|eyJ[A-Za-z0-9_-]{10,}(?:\.[A-Za-z0-9_-]*){0,4}"  # JWTs: base64url of '{"'
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"  # credentials in a URL
)
_SECRET_NAMES = re.compile(r"password|secret|token$|authorization|api_key|prompt$|content$", re.IGNORECASE)


def configure(level: str, stream: IO[str] | None = None) -> None:
    """Log to ``stream`` (default: standard error) as JSON lines, in this whole process."""
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Below WARNING, libraries log requests, connections and statements. The access log is ours.
    root.setLevel(logging.WARNING)
    logging.getLogger("chatsvc").setLevel(level)
    # By default, logging prints the arguments of a line that it cannot format, and Python the message of an uncaught
    # exception: both may quote input.
    logging.raiseExceptions = False
    threading.excepthook = lambda caught: _log_uncaught("a thread ended by an error", caught.exc_value)
    sys.unraisablehook = lambda caught: _log_uncaught("an error could not be raised", caught.exc_value)


def _log_uncaught(message: str, error: BaseException | None) -> None:
    if error is not None and not isinstance(error, SystemExit):
        logging.getLogger("chatsvc").error(message, exc_info=error)


def describe(error: BaseException) -> str:
    """An exception in one line: its type, and its message if that never quotes input.

    A database error also shows its standard code and the constraint it is about.
    """
    kind = type(error).__name__
    if isinstance(error, ChatsvcError):
        return f"{kind}: {error.message}"
    if isinstance(error, OSError) and isinstance(error.errno, int) and error.errno > 0:
        return f"{kind}: {os.strerror(error.errno)}" + (f": {error.filename}" if error.filename else "")
    if isinstance(error, NameError | AttributeError | ImportError):  # they quote only names in code
        return f"{kind}: {error}"
    return f"{kind}{_database_code(error)}"


def _database_code(error: BaseException) -> str:
    """A database error's code and constraint; empty for any other error."""
    cause = getattr(error, "orig", None)  # SQLAlchemy's errors wrap a driver's
    if isinstance(cause, BaseException):
        return f": {describe(cause)}"
    if isinstance(error, sqlite3.Error):
        return f": {getattr(error, 'sqlite_errorname', 'of the driver')}"
    state = getattr(error, "sqlstate", None)  # psycopg's
    if not isinstance(state, str):
        return ""
    constraint = getattr(getattr(error, "diag", None), "constraint_name", None)
    return f": SQLSTATE {state}" + (f", constraint {constraint}" if constraint else "")


def _in_a_sentence(value: object) -> object:
    """An argument of a log message: an exception as :func:`describe` shows it, ours as its message; else unchanged."""
    if isinstance(value, ChatsvcError):
        return value.message
    return describe(value) if isinstance(value, BaseException) else value


def _traceback(error: BaseException, num_left: int = 8) -> str:
    """A traceback as Python prints it, the first cause first, with :func:`describe` in place of messages."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    text = f"{_traceback(before, num_left - 1)}\n\nthen:\n\n" if before is not None and num_left else ""
    return f"{text}{''.join(traceback.format_tb(error.__traceback__))}{describe(error)}"


class JsonLines(logging.Formatter):
    """Formats ``{"ts", "level", "logger", "message", …}``, plus the fields of a call's ``extra={"fields": {…}}``."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line. Newlines in values are escaped, so a request cannot forge a line."""
        fields: dict[str, Any] = {
            "ts": _timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self._message(record),
        }
        extra = getattr(record, "fields", None)
        if isinstance(extra, Mapping):
            fields.update(extra)
        if record.exc_info and record.exc_info[1] is not None:
            fields["traceback"] = _traceback(record.exc_info[1])
        return json.dumps({name: redact(name, value) for name, value in fields.items()}, ensure_ascii=True, default=str)

    @staticmethod
    def _message(record: logging.LogRecord) -> str:
        arguments = record.args if isinstance(record.args, tuple) else ()
        if isinstance(record.msg, BaseException) or any(isinstance(each, BaseException) for each in arguments):
            record = copy(record)
            record.msg = _in_a_sentence(record.msg)
            record.args = tuple(_in_a_sentence(each) for each in arguments)
        return record.getMessage()


def redact(name: str, value: Any) -> Any:
    """The value with secrets masked: all of it if the field's name says so, else what looks like a secret."""
    if _SECRET_NAMES.search(name) and value is not None:
        return MASK
    if isinstance(value, str):
        return _SECRETS.sub(MASK, value)
    if isinstance(value, Mapping):
        return {key: redact(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(name, item) for item in value]
    return value


def _timestamp(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1_000_000):06d}Z"
