"""``/admin/models``: which models there are, and which one is served. Knows nothing about what is in a model.

Fetching and importing is the command line's: it is long work on files that this process may not be allowed to write.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flask import Blueprint, request

from chatsvc.audit.log import AuditLog
from chatsvc.engine.web_side.client import EngineClient
from chatsvc.errors import Conflict, EngineUnavailable, ModelRefused, NotFound, OperatorError
from chatsvc.guard.principal import scope
from chatsvc.http.api.auth import recorded
from chatsvc.http.wire import arguments, context
from chatsvc.http.wire.routing import requires
from chatsvc.models.store import ModelFolder, ModelStore


@dataclass(frozen=True, slots=True)
class ModelsDesk:
    """What the routes need.

    ``examine`` raises OperatorError for a model that would not be served. ``tell_to_swap`` asks whoever runs the
    engine; False where nobody listens.
    """

    store: ModelStore
    engine: EngineClient
    audit: AuditLog
    examine: Callable[[ModelFolder], None]
    tell_to_swap: Callable[[], bool]


def blueprint(desk: ModelsDesk) -> Blueprint:
    """The routes."""
    routes = Blueprint("models", __name__, url_prefix="/admin/models")

    @routes.get("")
    @requires(scope("admin"))
    def list_models() -> dict[str, Any]:
        active = _active(desk.store)
        return {
            "models": [_described(folder, active=folder.name == active) for folder in desk.store.list()],
            "active": active,
            "served": _served(desk.engine),
        }

    @routes.post("/<name>/activate")
    @requires(scope("admin"))
    def activate(name: str) -> tuple[dict[str, Any], int]:
        before, version = _active(desk.store), arguments.text(request, "version")
        named = {} if version is None else {"version": version}
        recorded(
            desk.audit,
            context.facts("admin.model.activate"),
            lambda: _activate(desk, name, version),
            details=lambda digest: {"before": before, "after": name, "digest": digest, **named},
        )
        return {"active": name, "swapping": desk.tell_to_swap()}, 202

    return routes


def _activate(desk: ModelsDesk, name: str, version: str | None) -> str:
    """The digest of what is active now."""
    if name not in {folder.name for folder in desk.store.list()}:
        raise NotFound("There is no such model in the store; GET /admin/models lists them.")
    try:
        desk.examine(desk.store.get(name))
        return desk.store.activate(name, version).card().digest
    except OperatorError as error:
        raise Conflict(error.message, code=error.code) from error


def _active(store: ModelStore) -> str | None:
    try:
        folder = store.active()
    except OperatorError:  # it points to nothing that is there
        return None
    return folder.name if folder else None


def _served(engine: EngineClient) -> str | None:
    try:
        return engine.card().name
    except EngineUnavailable:
        return None


def _described(folder: ModelFolder, *, active: bool) -> dict[str, Any]:
    try:
        description = folder.description()
    except ModelRefused:
        return {"name": folder.name, "active": active, "ok": False}
    return {
        "name": folder.name,
        "active": active,
        "ok": True,
        "format": description.format,
        "context_length": description.context_length,
        "sealed": description.sealed,
    }
