"""What the service tells the audit log about an act: who did what, and the result. The log decides what is written."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Self

_log = logging.getLogger(__name__)
Outcome = Literal["allowed", "denied", "error", "aborted"]


@dataclass(frozen=True, slots=True)
class Facts:
    """The caller, the act and the address. ``jti`` and ``attempted_name`` are written only as keyed hashes."""

    request_id: str
    action: str
    actor: str | None = None
    sid: str | None = None
    jti: str | None = None
    address: str | None = None
    method: str | None = None
    route: str | None = None
    model: str | None = None
    attempted_name: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """The result of an act. ``details`` is for administrative acts; the level decides on ``content``."""

    outcome: Outcome
    status: int | None = None
    reason: str | None = None
    num_prompt_tokens: int | None = None
    num_completion_tokens: int | None = None
    content: str | None = None
    details: Mapping[str, object] = field(default_factory=dict)


class OpenRecord:
    """An act whose ``begin`` record is durable. Leaving it as a context writes the ``end`` record with ``result``.

    ``result`` is an error until the act sets it, so an act that is cut off has failed.
    """

    def __init__(self, facts: Facts, write_end: Callable[[Result], None]) -> None:
        self.result = Result("error", status=500, reason="server_error")
        self._facts = facts
        self._write_end = write_end
        self._ending = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end(self.result)

    def end(self, result: Result) -> None:
        """Write the ``end`` record, once; durable on return if the disk allows. Never raises: the act is done."""
        if self._ending.acquire(blocking=False):
            self._write_end(result)
        else:
            _log.error("an audit record was ended twice", extra={"request_id": self._facts.request_id})
