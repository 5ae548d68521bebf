"""``/admin/models``: which models there are, and which one is served. Knows nothing about what is in a model.

Models are fetched and imported by command: that takes long, and this process may not be allowed to write their files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, NotRequired, TypedDict

from flask import request
from pydantic import Field

from chatsvc.audit.log import AuditLog
from chatsvc.engine.web_side.client import EngineClient
from chatsvc.errors import Conflict, EngineUnavailable, ModelRefused, NotFound, OperatorError
from chatsvc.guard.principal import scope
from chatsvc.http.api.recording import recorded
from chatsvc.http.wire import context
from chatsvc.http.wire.routing import Operation, like, requires, route
from chatsvc.http.wire.schema import Query, Text, parse_query
from chatsvc.models.store import ModelFolder, ModelStore

_NAME = "Qwen1.5-0.5B-Chat"


class VersionQuery(Query):
    """Which version."""

    version: Text | None = Field(None, description="The model's revision; needed to go back to an older one.")


class StoredModel(TypedDict):
    """A model of the store. If it does not verify, ``ok`` is false and the later fields are absent."""

    name: Annotated[str, like(_NAME)]
    active: Annotated[bool, like(True)]
    ok: Annotated[bool, like(True)]
    format: NotRequired[Annotated[str, like("native")]]
    context_length: NotRequired[Annotated[int, like(32_768)]]
    sealed: NotRequired[Annotated[bool, like(False)]]


class ModelList(TypedDict):
    """``active`` is the model that an engine started now would load, ``served`` the one that answers."""

    models: list[StoredModel]
    active: Annotated[str, like(_NAME)] | None
    served: Annotated[str, like(_NAME)] | None


class Activation(TypedDict):
    """``swapping`` is false if no supervisor is running; the engine must then be restarted."""

    active: Annotated[str, like(_NAME)]
    swapping: Annotated[bool, like(True)]


@dataclass(frozen=True, slots=True)
class ModelViews:
    """The views, and what they need.

    ``examine`` raises OperatorError for a model that would not be served. ``tell_to_swap`` asks the supervisor to
    switch; False if none is running.
    """

    TAG: ClassVar = "admin"

    store: ModelStore
    engine: EngineClient
    audit: AuditLog
    examine: Callable[[ModelFolder], None]
    tell_to_swap: Callable[[], bool]

    @route("GET", "/admin/models")
    @requires(scope("admin"))
    @Operation(answer=ModelList)
    def list_models(self) -> ModelList:
        """List the models of the store, the active one and the one that is served."""
        active = _active(self.store)
        return {
            "models": [_described(folder, active=folder.name == active) for folder in self.store.list()],
            "active": active,
            "served": _served(self.engine),
        }

    @route("POST", "/admin/models/<name>/activate")
    @requires(scope("admin"))
    @Operation(query=VersionQuery, answer=Activation, status=202, errors=(409,), path={"name": _NAME})
    def activate(self, name: str) -> tuple[Activation, int]:
        """Serve another model; requests are not interrupted."""
        before, version = _active(self.store), parse_query(request, VersionQuery).version
        named = {} if version is None else {"version": version}
        recorded(
            self.audit,
            context.facts("admin.model.activate"),
            lambda: self._activate(name, version),
            details=lambda digest: {"before": before, "after": name, "digest": digest, **named},
        )
        return {"active": name, "swapping": self.tell_to_swap()}, 202

    def _activate(self, name: str, version: str | None) -> str:
        """The digest of what is active now."""
        if name not in {folder.name for folder in self.store.list()}:
            raise NotFound("There is no such model in the store; GET /admin/models lists them.")
        try:
            self.examine(self.store.get(name))
            return self.store.activate(name, version).card().digest
        except OperatorError as error:
            raise Conflict(error.message, code=error.code) from error


def _active(store: ModelStore) -> str | None:
    try:
        folder = store.active()
    except OperatorError:  # the link is broken
        return None
    return folder.name if folder else None


def _served(engine: EngineClient) -> str | None:
    try:
        return engine.card().name
    except EngineUnavailable:
        return None


def _described(folder: ModelFolder, *, active: bool) -> StoredModel:
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
