"""State of the service: the served model and the sessions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypedDict

from flask import Response, request
from pydantic import Field

from chatsvc.audit.log import AuditLog
from chatsvc.engine.web_side.client import EngineClient
from chatsvc.guard.credentials.sessions import Sessions
from chatsvc.guard.principal import scope
from chatsvc.http.api.recording import recorded_change
from chatsvc.http.wire.routing import Operation, like, requires, route
from chatsvc.http.wire.schema import Query, Text, parse_query

_ADMIN = requires(scope("admin"))
_SID = "5e1c7a9b3d2f4e6a8b0c1d2e3f4a5b6c"


class ServedModel(TypedDict):
    """The model that is served; times in Unix seconds."""

    name: Annotated[str, like("Qwen1.5-0.5B-Chat")]
    digest: Annotated[str, like("9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")]
    revision: Annotated[str, like("4d14e384a4b037942bb3f3016665157c8bcb70ea")]
    created: Annotated[int, like(1_767_225_600)]
    context_length: Annotated[int, like(32_768)]
    runner: Annotated[str, like("native")]


class EngineState(TypedDict):
    """``reason`` is set while it is not ready."""

    ready: Annotated[bool, like(True)]
    reason: Annotated[str, like(None)] | None
    draining: bool


class Sequences(TypedDict):
    """How many are running, waiting, and can run at once."""

    running: Annotated[int, like(3)]
    waiting: Annotated[int, like(0)]
    max: Annotated[int, like(16)]


class ModelState(TypedDict):
    """``model`` is null while none is ready."""

    model: ServedModel | None
    engine: EngineState
    sequences: Sequences


class SessionsQuery(Query):
    """Whose sessions."""

    account: Text | None = Field(None, description="Only those of this account.", examples=["alice"])


class SessionAnswer(TypedDict):
    """A login and all tokens issued for it; times in Unix seconds."""

    sid: Annotated[str, like(_SID)]
    account: Annotated[str, like("alice")]
    address: Annotated[str, like("10.0.0.17")]
    created_at: Annotated[float, like(1_767_225_600.25)]
    last_used_at: Annotated[float, like(1_767_225_612.5)]
    ends_at: Annotated[float, like(1_767_830_400.25)]


class SessionList(TypedDict):
    """Sessions."""

    sessions: list[SessionAnswer]


@dataclass(frozen=True, slots=True)
class ServiceViews:
    """The views, and what they need."""

    TAG: ClassVar = "admin"

    engine: EngineClient
    stored_sessions: Sessions
    audit: AuditLog

    @route("GET", "/admin/model")
    @_ADMIN
    @Operation(answer=ModelState)
    def model(self) -> dict[str, Any]:
        """The served model and the state of its engine."""
        status = self.engine.status()
        card = self.engine.card() if status.ready else None
        shown = ("name", "digest", "revision", "created", "context_length", "runner")
        return {
            "model": {name: getattr(card, name) for name in shown} if card else None,
            "engine": {"ready": status.ready, "reason": status.reason, "draining": status.draining},
            "sequences": {"running": status.num_running, "waiting": status.num_waiting, "max": status.max_num_seqs},
        }

    @route("GET", "/admin/sessions")
    @_ADMIN
    @Operation(query=SessionsQuery, answer=SessionList)
    def sessions(self) -> dict[str, Any]:
        """List the sessions of everyone who is logged in."""
        listed = self.stored_sessions.list_sessions(parse_query(request, SessionsQuery).account)
        return {"sessions": [session.as_dict() for session in listed]}

    @route("DELETE", "/admin/sessions/<string(maxlength=64):sid>")
    @_ADMIN
    @Operation(status=204, path={"sid": _SID})
    def end_session(self, sid: str) -> Response:
        """End a session; its running requests end too."""
        recorded_change(self.audit, "session.end", lambda: self.stored_sessions.end(sid, "admin"))
        return Response(status=204)
