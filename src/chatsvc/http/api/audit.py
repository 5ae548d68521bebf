"""The audit log over HTTP. Knows nothing about the log's format.

``GET /admin/audit/export`` is a stretch of it in one file that verifies by itself, the same bytes as ``chatsvc audit
export``. ``/audit/witness`` is where other replicas send the heads of their logs: this one then is their witness.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from flask import Blueprint, Response, jsonify, request
from flask.typing import ResponseReturnValue
from pydantic import Field

from chatsvc.audit.facts import Result
from chatsvc.audit.format.notes import KeyUnknown, NoteInvalid
from chatsvc.audit.log import AuditLog
from chatsvc.audit.verify.export import Span, export, parse_moment
from chatsvc.audit.witness.held_heads import HeadRefused, Submission, Witnessed
from chatsvc.errors import Conflict, InvalidRequest, PermissionRefused
from chatsvc.guard.principal import scope
from chatsvc.http.wire import context
from chatsvc.http.wire.routing import requires
from chatsvc.http.wire.schema import Body, Text, parse_json

_Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_MAX_PROOF = 130  # RFC 9162 2.1.4.2: at most two nodes a level, and no tree is higher than 64


class HeadBody(Body):
    """``POST /audit/witness``: a signed head, and the proof that it continues the one held here."""

    checkpoint: Annotated[Text, Field(max_length=4096)]
    old_size: Annotated[int, Field(ge=0, lt=2**63)]
    proof: Annotated[list[_Hash], Field(max_length=_MAX_PROOF)]


@dataclass(frozen=True, slots=True)
class AuditDesk:
    """What the routes need."""

    log: AuditLog
    directory: Path
    keys: Path
    witnessed: Witnessed
    clock: Callable[[], float] = time.time


def blueprint(desk: AuditDesk) -> Blueprint:
    """The routes."""
    routes = Blueprint("audit", __name__)

    @routes.get("/admin/audit/export")
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

    @routes.get("/audit/witness")
    @requires(scope("witness", or_scope="audit"))
    def held_head() -> ResponseReturnValue:
        origins = request.args.getlist("origin")
        if len(origins) != 1 or not origins[0]:
            raise InvalidRequest("origin: name one log.", param="origin", code="invalid_value")
        head = desk.witnessed.head(origins[0])
        return jsonify({"origin": origins[0], "size": head.size if head else 0})

    @routes.post("/audit/witness")
    @requires(scope("witness"))
    def take_head() -> ResponseReturnValue:
        body = parse_json(request, HeadBody)
        return jsonify(_taken(desk, body))

    return routes


def _taken(desk: AuditDesk, body: HeadBody) -> dict[str, object]:
    """Hold the head. That one was refused is what this replica's own auditor should see, so it is on record."""
    proof = [bytes.fromhex(each) for each in body.proof]
    try:
        head = desk.witnessed.take(Submission(body.checkpoint, body.old_size, proof))
    except NoteInvalid as error:
        raise InvalidRequest(error.message, param="checkpoint", code="invalid_value") from error
    except KeyUnknown as error:
        raise PermissionRefused("witness_key_unknown", message="No pinned key signed this head.") from error
    except HeadRefused as error:
        result = Result("denied", status=409, reason=error.message)
        desk.log.event(context.facts("audit.witness"), result)
        raise Conflict(error.message, code=error.code) from error
    return {"origin": head.origin, "size": head.size}


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
