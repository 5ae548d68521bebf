"""``GET /admin/audit/export``: a stretch of the audit log in one file that verifies by itself.

The same bytes as ``chatsvc audit export``. Knows nothing about the log's format.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flask import Blueprint, Response, request

from chatsvc.audit.export import Span, export, parse_moment
from chatsvc.audit.facts import Result
from chatsvc.audit.log import AuditLog
from chatsvc.errors import InvalidRequest
from chatsvc.guard.principal import scope
from chatsvc.http import context
from chatsvc.http.routing import requires


@dataclass(frozen=True, slots=True)
class AuditDesk:
    """What the export needs."""

    log: AuditLog
    directory: Path
    keys: Path
    clock: Callable[[], float] = time.time


def blueprint(desk: AuditDesk) -> Blueprint:
    """The route."""
    routes = Blueprint("audit", __name__, url_prefix="/admin/audit")

    @routes.get("/export")
    @requires(scope("admin", or_scope="audit"))  # an auditor need not administer
    def export_span() -> Response:
        now_us = round(desk.clock() * 1_000_000)
        span = Span(_moment("from", 0), _moment("to", now_us), now_us)
        if span.start_us >= span.end_us:
            raise InvalidRequest("from: it must be before 'to'.", param="from", code="invalid_value")
        details = {"from": span.start_us, "to": span.end_us}
        desk.log.event(context.facts("audit.export"), Result("allowed", status=200, details=details))
        pieces = export(desk.directory, desk.keys, span)
        return Response(
            _Whole(next(pieces), pieces),
            content_type="application/jsonl",
            headers={"Content-Disposition": 'attachment; filename="chatsvc-audit.jsonl"'},
        )

    return routes


class _Whole:
    """The first piece, which says that there will be an export at all, and the rest."""

    def __init__(self, first: bytes, rest: Iterator[bytes]) -> None:
        self._first = first
        self._rest = rest

    def __iter__(self) -> Iterator[bytes]:
        yield self._first
        yield from self._rest


def _moment(name: str, default_us: int) -> int:
    given = request.args.getlist(name)
    if not given:
        return default_us
    try:
        (text,) = given
        return max(0, parse_moment(text))
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(
            f"{name}: one day or time in ISO 8601, such as 2026-01-31 or 2026-01-31T12:00:00Z.",
            param=name,
            code="invalid_value",
        ) from error
