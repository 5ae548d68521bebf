"""The operational log: one JSON object a line on standard error, with anything that looks like a secret masked.

Prompts, passwords, tokens and keys are never handed to a logger in the first place; masking is the second line.
Knows nothing about what is logged.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Mapping
from typing import IO, Any

MASK = "[masked]"

_SECRETS = re.compile(
    r"csk_[A-Za-z0-9]+_[A-Za-z0-9_-]+"  # API keys
    r"|eyJ[A-Za-z0-9_-]{10,}(?:\.[A-Za-z0-9_-]*){0,4}"  # JWTs: base64url of '{"'
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"  # credentials in a URL
)
_SECRET_NAMES = re.compile(r"password|secret|token$|authorization|api_key|prompt$|content$", re.IGNORECASE)


def configure(level: str, stream: IO[str] | None = None) -> None:
    """Send everything that is logged in this process to ``stream`` (standard error) as JSON lines."""
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # They log a line a request or a connection of their own; the access line is ours.
    for noisy in ("werkzeug", "sqlalchemy.engine", "alembic", "httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class JsonLines(logging.Formatter):
    """``{"ts", "level", "logger", "message", …}``; what a call gives as ``extra={"fields": {…}}`` stands beside it."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, newlines inside values escaped: a request cannot forge a line of its own."""
        fields: dict[str, Any] = {
            "ts": _timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        extra = getattr(record, "fields", None)
        if isinstance(extra, Mapping):
            fields.update(extra)
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps({name: redact(name, value) for name, value in fields.items()}, ensure_ascii=True, default=str)


def redact(name: str, value: Any) -> Any:
    """The value, with secrets masked by its name or by its looks."""
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
