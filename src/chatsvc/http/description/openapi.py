"""``/openapi.json``: the OpenAPI 3.1 document, made from what the views declare (:mod:`chatsvc.http.wire.routing`).

Knows nothing about what a view does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypedDict

import msgspec
from flask import Flask, jsonify
from flask.typing import ResponseReturnValue
from pydantic import BaseModel
from werkzeug.routing import Rule

from chatsvc.guard.principal import PUBLIC, Requirement
from chatsvc.http.description.examples import example_of
from chatsvc.http.wire import routing
from chatsvc.http.wire.problems import ErrorAnswer
from chatsvc.http.wire.routing import Operation, like, requires, route
from chatsvc.http.wire.sse import StreamEvent

_ABOUT = (
    "A private chat service. Log in at /login, send the access token as a bearer, and chat at /chat, /chat/stream, "
    "or with any OpenAI client against /v1. Every route checks the client's address first."
)
_TAGS = {
    "chat": "Chat",
    "openai": "OpenAI-compatible",
    "conversations": "Conversations",
    "session": "Login and logout",
    "health": "Health and metrics",
    "admin": "Administration",
    "pages": "Pages",
}
_ERRORS = {
    "400": "The request is malformed; `param` names what is wrong.",
    "401": "No valid token.",
    "403": "The client's address is not on the allow-list, or the scope is missing.",
    "404": "It does not exist, or belongs to another account.",
    "409": "It already exists, or conflicts with the current state.",
    "413": "The body is too large.",
    "415": "The body is not application/json.",
    "429": "Over your own rate, quota or concurrency; `Retry-After` says when to try again.",
    "500": "An error of the service; its log has it under the request's id.",
    "503": "Busy, starting, draining, or something it needs is down; `Retry-After` says when to try again.",
}
_SECURITY_SCHEMES = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An access token from /login (a refresh token at /refresh), or an API key csk_…",
    },
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-Api-Key", "description": "An API key csk_…"},
}
_REF = "#/components/schemas/{}"


class OpenApiDocument(TypedDict):
    """An OpenAPI 3.1 document."""

    openapi: Annotated[str, like("3.1.0")]
    info: Annotated[dict[str, Any], like({"title": "chatsvc", "version": "0.2.0"})]
    tags: Annotated[list[dict[str, str]], like([{"name": "chat", "description": "Chat"}])]
    paths: Annotated[dict[str, dict[str, Any]], like({"/chat": {"post": {"…": "…"}}})]
    components: Annotated[dict[str, Any], like({"schemas": {}, "responses": {}, "securitySchemes": {}})]


@dataclass(frozen=True, slots=True)
class Configured:
    """Configured bounds of a request."""

    max_tokens_cap: int
    roles: Sequence[str]


class _DocumentViews:
    """The view, and the finished document."""

    TAG: ClassVar = "pages"

    def __init__(self) -> None:
        self.document: OpenApiDocument | None = None

    @route("GET", "/openapi.json")
    @requires(PUBLIC)
    @Operation(answer=OpenApiDocument)
    def openapi(self) -> ResponseReturnValue:
        """The OpenAPI document."""
        return jsonify(self.document)


def install(app: Flask, version: str, configured: Configured) -> None:
    """Add the route. Call it last: the document has the routes that exist at that time."""
    views = _DocumentViews()
    app.register_blueprint(routing.blueprint("openapi", views))
    views.document = _Maker(app, configured).document(version)


class _Maker:
    """Describes routes one by one, and gathers the schemas they refer to."""

    def __init__(self, app: Flask, configured: Configured) -> None:
        self._app = app
        self._configured = configured
        self._schemas: dict[str, Any] = {}

    def document(self, version: str) -> OpenApiDocument:
        """The whole document."""
        paths: dict[str, dict[str, Any]] = {}
        for rule in sorted(self._app.url_map.iter_rules(), key=str):
            for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
                paths.setdefault(routing.template(rule), {})[method.lower()] = self._described(rule)
        return {
            "openapi": "3.1.0",
            "info": {"title": "chatsvc", "version": version, "description": _ABOUT, "license": {"name": "Apache-2.0"}},
            "tags": [{"name": name, "description": description} for name, description in _TAGS.items()],
            "paths": paths,
            "components": {
                "responses": self._error_answers(),
                "schemas": self._schemas,
                "securitySchemes": _SECURITY_SCHEMES,
            },
        }

    def _described(self, rule: Rule) -> dict[str, Any]:
        operation, text, tag = routing.operation_of(self._app, rule)
        requirement = routing.requirement_of(self._app, rule)
        assert requirement is not None, "create_app refuses routes without a declared requirement"
        summary, _, details = text.partition("\n")
        described: dict[str, Any] = {
            "tags": [tag],
            "operationId": rule.endpoint.replace(".", "_"),
            "summary": summary.removesuffix("."),
            "description": "\n\n".join(filter(None, [_joined(details), _needs(requirement)])),
            "security": _security(requirement),
            "responses": self._answers(operation, rule, requirement),
        }
        parameters = [_path_parameter(name, operation.path[name]) for name in sorted(rule.arguments)]
        parameters += _query_parameters(operation.query) if operation.query else []
        if parameters:
            described["parameters"] = parameters
        if operation.body is not None:
            content = {"application/json": self._json(self._model(operation.body))}
            described["requestBody"] = {"required": operation.body_required, "content": content}
        return described

    def _answers(self, operation: Operation, rule: Rule, requirement: Requirement) -> dict[str, Any]:
        answers: dict[str, Any] = {str(operation.status): self._success(operation)}
        statuses = {"400", "403", "500", "503", *map(str, operation.errors)}  # 400: an invalid Host header
        if requirement.kind != "public":
            statuses |= {"401"}
        if operation.body is not None:
            statuses |= {"413", "415"}
        if rule.arguments:
            statuses |= {"404"}
        for status in sorted(statuses):
            answers[status] = {"$ref": f"#/components/responses/Error{status}"}
        for failure, kind in operation.failures.items():
            content = {"application/json": self._json(self._type(kind))}
            answers[str(failure)] = {"description": "Not healthy; `reason` says why.", "content": content}
        return answers

    def _success(self, operation: Operation) -> dict[str, Any]:
        content: dict[str, Any] = {}
        if operation.answer is not None:
            content["application/json"] = self._json(self._type(operation.answer))
        for media_type, example in operation.texts.items():
            # The schema is that of each event; the example is a whole stream.
            is_stream = media_type == "text/event-stream"
            schema = self._type(StreamEvent) if is_stream else {"type": "string"}
            content[media_type] = {"schema": schema, "example": example}
        return {"description": "Done.", "content": content} if content else {"description": "Done."}

    def _error_answers(self) -> dict[str, Any]:
        content = {"application/json": {"schema": self._type(ErrorAnswer)}}
        answers: dict[str, Any] = {
            f"Error{status}": {"description": description, "content": content}
            for status, description in _ERRORS.items()
        }
        # A request that is not valid HTTP is refused by the server in front of the application, with the server's own
        # body.
        answers["Error400"]["content"] = {**content, "text/html": {"schema": {"type": "string"}}}
        return answers

    def _json(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        return {"schema": schema, "example": example_of(schema, self._schemas)}

    def _type(self, kind: Any) -> dict[str, Any]:
        """A reference to the schema of an answer; no other properties are allowed."""
        (schema,), components = msgspec.json.schema_components([kind], ref_template=_REF.format("{name}"))
        for name, component in components.items():
            closed = {"additionalProperties": False} if "properties" in component else {}
            self._schemas[name] = {**_tidied(component), **closed}
        return schema

    def _model(self, model: type[BaseModel]) -> dict[str, Any]:
        """A reference to the schema of a body."""
        schema = model.model_json_schema(ref_template=_REF.format("{model}"))
        self._schemas.update(_tidied(schema.pop("$defs", {})))
        self._schemas[model.__name__] = _tidied(schema)
        _set(self._schemas[model.__name__]["properties"], self._configured)
        return {"$ref": _REF.format(model.__name__)}


def _set(properties: dict[str, Any], configured: Configured) -> None:
    bounds = {"maximum": configured.max_tokens_cap}
    roles = {"items": {"enum": list(configured.roles)}}
    for name, bound in (("max_tokens", bounds), ("max_completion_tokens", bounds), ("roles", roles)):
        schema = properties.get(name, {})
        for choice in schema.get("anyOf", [schema]):
            if choice.get("type") in {"integer", "array"}:
                choice.update(bound)


def _tidied(schema: Any) -> Any:
    """The schema without titles generated from names and without docstring markup."""
    if isinstance(schema, list):
        return [_tidied(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    tidied = {name: _tidied(item) for name, item in schema.items() if name != "title" or not isinstance(item, str)}
    if isinstance(tidied.get("description"), str):
        tidied["description"] = _joined(tidied["description"])
    return tidied


def _joined(text: str) -> str:
    """The text with each paragraph on one line."""
    return "\n\n".join(" ".join(part.split()) for part in text.replace("``", "`").strip().split("\n\n"))


def _needs(requirement: Requirement) -> str:
    if requirement.kind == "public":
        return "Needs no token."
    if requirement.refresh:
        return "Needs a refresh token."
    scopes = [f"`{name}`" for name in (requirement.scope, requirement.other_scope) if name]
    return f"Needs scope {' or '.join(scopes)}." if scopes else "Needs a token."


def _security(requirement: Requirement) -> list[dict[str, list[str]]]:
    if requirement.kind == "public":
        return []
    return [{"bearer": []}] if requirement.refresh else [{"bearer": []}, {"apiKey": []}]


def _path_parameter(name: str, example: str) -> dict[str, Any]:
    schema = {"type": "string", "minLength": 1}
    return {"name": name, "in": "path", "required": True, "schema": schema, "example": example}


def _query_parameters(model: type[BaseModel]) -> list[dict[str, Any]]:
    schema = _tidied(model.model_json_schema())
    described = []
    for name, part in schema["properties"].items():
        # A parameter that is left out is None to us, and never null on the wire.
        values = part["anyOf"][0] if {"type": "null"} in part.get("anyOf", ()) else part
        kept = {key: value for key, value in values.items() if key not in {"description", "examples"}}
        required = name in schema.get("required", ())
        parameter = {"name": name, "in": "query", "required": required, "schema": kept}
        if "description" in part:
            parameter["description"] = part["description"]
        if "examples" in part:
            parameter["example"] = part["examples"][0]
        described.append(parameter)
    return described
