"""The audit log over HTTP: exporting it, and witnessing the logs of other replicas. Knows nothing about its format."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypedDict

from flask import Response, request
from msgspec import Meta
from pydantic import BeforeValidator, Field, WithJsonSchema

from chatsvc.audit.facts import Result
from chatsvc.audit.format.notes import KeyUnknown, NoteInvalid
from chatsvc.audit.log import AuditLog
from chatsvc.audit.verify.export import Span, export, parse_moment
from chatsvc.audit.witness.held_heads import HeadRefused, HeldHeads, Submission
from chatsvc.errors import Conflict, InvalidRequest, PermissionRefused
from chatsvc.guard.principal import scope
from chatsvc.http.wire import context
from chatsvc.http.wire.routing import Operation, like, requires, route
from chatsvc.http.wire.schema import Body, Query, Text, parse_json, parse_query

_Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_MAX_PROOF = 130  # RFC 9162 2.1.4.2: at most two nodes a level, and no tree is higher than 64


_ORIGIN = "chatsvc.local/audit/2f6c9d41"
_EXAMPLE_HASH = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_CHECKPOINT = f"{_ORIGIN}\n1204\n…\n\n— {_ORIGIN} …\n"
_EXPORT = """\
{"export":{"v":1,"from":"2026-01-01T00:00:00.000000Z","to":"2026-02-01T00:00:00.000000Z","made_at":"…","vkeys":["…"]}}
{"log":{"log_id":"2f6c9d41","first_seq":1,"prev":"…","epoch":1,"segment":"…"}}
…
{"signature":"…"}
"""


class HeadBody(Body):
    """A signed head, and the proof that it continues the one held here."""

    checkpoint: Annotated[Text, Field(max_length=4096, examples=[_CHECKPOINT])]
    old_size: Annotated[int, Field(ge=0, lt=2**63, examples=[1200])]
    proof: Annotated[list[_Hash], Field(max_length=_MAX_PROOF, examples=[[_EXAMPLE_HASH]])]


class Head(TypedDict):
    """How many records of a log have been witnessed here; 0 for a log that is not known."""

    origin: Annotated[str, like(_ORIGIN)]
    size: Annotated[int, Meta(ge=0, examples=[1204])]


def _moment(value: Any) -> int:
    """Microseconds."""
    try:
        return max(0, parse_moment(value))
    except (ValueError, OverflowError):
        raise ValueError("one day or time in ISO 8601, such as 2026-01-31 or 2026-01-31T12:00:00Z") from None


_ISO_8601 = WithJsonSchema({"type": "string", "anyOf": [{"format": "date"}, {"format": "date-time"}]})
Moment = Annotated[int, BeforeValidator(_moment), _ISO_8601]


class SpanQuery(Query):
    """A span of time."""

    start_us: Moment | None = Field(None, alias="from", description="The first moment.", examples=["2026-01-01"])
    end_us: Moment | None = Field(None, alias="to", description="The moment after the last.", examples=["2026-02-01"])


class LogQuery(Query):
    """Which log."""

    origin: Annotated[Text, Field(min_length=1, description="The log's name.", examples=[_ORIGIN])]


@dataclass(frozen=True, slots=True)
class AuditViews:
    """The views, and what they need."""

    TAG: ClassVar = "admin"

    log: AuditLog
    directory: Path
    keys: Path
    witnessed: HeldHeads
    clock: Callable[[], float] = time.time

    @route("GET", "/admin/audit/export")
    @requires(scope("admin", or_scope="audit"))  # an auditor need not administer
    @Operation(query=SpanQuery, texts={"application/jsonl": _EXPORT})
    def export_span(self) -> Response:
        """Export a span of the audit log as one file that verifies by itself.

        The bytes are those of `chatsvc audit export`; `chatsvc audit verify FILE` checks them.
        """
        now_us = round(self.clock() * 1_000_000)
        query = parse_query(request, SpanQuery)
        span = Span(query.start_us or 0, now_us if query.end_us is None else query.end_us, now_us)
        if span.start_us >= span.end_us:
            raise InvalidRequest("from: it must be before 'to'.", param="from", code="invalid_value")
        details = {"from": span.start_us, "to": span.end_us}
        self.log.event(context.facts("audit.export"), Result("allowed", status=200, details=details))
        pieces = export(self.directory, self.keys, span)
        return Response(
            _Whole(next(pieces), pieces),
            content_type="application/jsonl",
            headers={"Content-Disposition": 'attachment; filename="chatsvc-audit.jsonl"'},
        )

    @route("GET", "/audit/witness")
    @requires(scope("witness", or_scope="audit"))
    @Operation(query=LogQuery, answer=Head)
    def held_head(self) -> Head:
        """How much of another replica's log has been witnessed here."""
        origin = parse_query(request, LogQuery).origin
        head = self.witnessed.head(origin)
        return {"origin": origin, "size": head.size if head else 0}

    @route("POST", "/audit/witness")
    @requires(scope("witness"))
    @Operation(body=HeadBody, answer=Head, errors=(409,))
    def take_head(self) -> Head:
        """Witness the head of another replica's log: check that it continues the one held here, and hold it."""
        return self._taken(parse_json(request, HeadBody))

    def _taken(self, body: HeadBody) -> Head:
        """Hold the head. A refusal is recorded: this replica's own auditor should see it."""
        proof = [bytes.fromhex(each) for each in body.proof]
        try:
            head = self.witnessed.take(Submission(body.checkpoint, body.old_size, proof))
        except NoteInvalid as error:
            raise InvalidRequest(error.message, param="checkpoint", code="invalid_value") from error
        except KeyUnknown as error:
            raise PermissionRefused("witness_key_unknown", message="No pinned key signed this head.") from error
        except HeadRefused as error:
            result = Result("denied", status=409, reason=error.message)
            self.log.event(context.facts("audit.witness"), result)
            raise Conflict(error.message, code=error.code) from error
        return {"origin": head.origin, "size": head.size}


class _Whole:
    """The first piece, made before the status is sent so that an error can still be answered, then the rest."""

    def __init__(self, first: bytes, rest: Iterator[bytes]) -> None:
        self._first = first
        self._rest = rest

    def __iter__(self) -> Iterator[bytes]:
        yield self._first
        yield from self._rest
