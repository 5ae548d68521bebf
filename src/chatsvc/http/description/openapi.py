"""``/openapi.json``: the OpenAPI 3.1 document, made from the routes, their requirements and the models of their bodies.

What a route means is in the table of :mod:`chatsvc.http.description.operations`; a test holds the two together. Knows
nothing about what a route does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flask import Blueprint, Flask, jsonify
from flask.typing import ResponseReturnValue
from pydantic import BaseModel
from werkzeug.routing import Rule

from chatsvc.guard.principal import PUBLIC, Requirement
from chatsvc.http.description.operations import OPERATIONS, SCHEMAS, TAGS, Operation
from chatsvc.http.wire import routing
from chatsvc.http.wire.routing import requires

_ABOUT = (
    "A private chat service. Log in at /login, send the access token as a bearer, and chat at /chat, /chat/stream, "
    "or with any OpenAI client against /v1. Every route checks the client's address first."
)
_ERRORS = {
    "400": "The request is malformed; `param` names what is wrong.",
    "401": "No good token, for whatever reason.",
    "403": "The address is not on the list, or the scope is missing.",
    "404": "Not there, or not yours.",
    "409": "It exists already, or contradicts what is there.",
    "413": "The body is too large.",
    "415": "The body is not application/json.",
    "429": "Over one's own rate, quota or concurrency; `Retry-After` says when to try again.",
    "500": "Something went wrong on our side; it is in the log with the request's id.",
    "503": "Busy, starting, draining, or something it needs is down; `Retry-After` says when to try again.",
}
_REF = "#/components/schemas/{model}"


@dataclass(frozen=True, slots=True)
class Configured:
    """What is configured is as binding as what is written."""

    max_tokens_cap: int
    roles: Sequence[str]


def install(app: Flask, version: str, configured: Configured) -> None:
    """Add the route. Call it last: it describes what is there."""
    routes = Blueprint("openapi", __name__)
    made: list[dict[str, Any]] = []

    @routes.get("/openapi.json")
    @requires(PUBLIC)
    def openapi() -> ResponseReturnValue:
        return jsonify(made[0])

    app.register_blueprint(routes)
    made.append(document(app, version))
    _set(made[0]["components"]["schemas"], configured)


def document(app: Flask, version: str) -> dict[str, Any]:
    """The whole document."""
    schemas: dict[str, Any] = dict(SCHEMAS)
    paths: dict[str, dict[str, Any]] = {}
    for rule in sorted(app.url_map.iter_rules(), key=str):
        path = routing.template(rule)
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            operation = OPERATIONS.get((method, path)) or Operation("pages", f"{method} {path}")
            requirement = routing.requirement_of(app, rule)
            assert requirement is not None, "create_app refuses routes that declare nothing"
            paths.setdefault(path, {})[method.lower()] = _operation(operation, rule, requirement, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "chatsvc", "version": version, "description": _ABOUT, "license": {"name": "Apache-2.0"}},
        "tags": [{"name": name, "description": description} for name, description in TAGS.items()],
        "paths": paths,
        "components": {"schemas": schemas, "responses": _error_answers(), "securitySchemes": _SECURITY_SCHEMES},
    }


def _set(schemas: dict[str, Any], configured: Configured) -> None:
    for model in ("ChatBody", "OpenAIBody", "CompletionBody"):
        for name in ("max_tokens", "max_completion_tokens"):
            for choice in schemas[model]["properties"].get(name, {}).get("anyOf", []):
                if choice.get("type") == "integer":
                    choice["maximum"] = configured.max_tokens_cap
    for model in ("AccountBody", "AccountPatchBody"):
        roles = schemas[model]["properties"]["roles"]
        for choice in roles.get("anyOf", [roles]):
            if choice.get("type") == "array":
                choice["items"] = {"enum": list(configured.roles)}


_SECURITY_SCHEMES = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An access token from /login (a refresh token at /refresh), or an API key csk_…",
    },
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-Api-Key", "description": "An API key csk_…"},
}


def _operation(operation: Operation, rule: Rule, requirement: Requirement, schemas: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "tags": [operation.tag],
        "operationId": rule.endpoint.replace(".", "_"),
        "summary": operation.summary,
        "responses": _answers(operation, rule, requirement),
    }
    parameters = [_path_parameter(name) for name in sorted(rule.arguments)] + list(operation.query)
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        content = {"application/json": {"schema": _schema_of(operation.body, schemas)}}
        described["requestBody"] = {"required": operation.body_required, "content": content}
    if requirement.kind == "public":
        described["security"] = []
    else:
        described["security"] = [{"bearer": []}] if requirement.refresh else [{"bearer": []}, {"apiKey": []}]
        scopes = [f"`{name}`" for name in (requirement.scope, requirement.other_scope) if name]
        described["description"] = f"Needs scope {' or '.join(scopes)}." if scopes else "Needs a token."
    return described


def _answers(operation: Operation, rule: Rule, requirement: Requirement) -> dict[str, Any]:
    answers = {str(operation.status): operation.answer()}
    statuses = {"403", "500", "503", *(str(status) for status in operation.errors)}
    statuses |= {"400"}  # a Host header that is none
    if requirement.kind != "public":
        statuses |= {"401"}
    if operation.body is not None:
        statuses |= {"413", "415"}
    if rule.arguments:
        statuses |= {"404"}
    for status in sorted(statuses - set(operation.own_answers)):
        answers[status] = {"$ref": f"#/components/responses/Error{status}"}
    answers.update(operation.own_answers)
    return answers


def _error_answers() -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": _REF.format(model="Error")}}}
    answers: dict[str, Any] = {
        f"Error{status}": {"description": description, "content": content} for status, description in _ERRORS.items()
    }
    # What is no HTTP at all is refused by the server in front of the application, in its own words.
    answers["Error400"]["content"] = {**content, "text/html": {"schema": {"type": "string"}}}
    return answers


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _schema_of(model: type[BaseModel], schemas: dict[str, Any]) -> dict[str, Any]:
    """A reference to the model's schema, which is put among the components with everything it refers to."""
    schema = model.model_json_schema(ref_template=_REF)
    schemas.update(schema.pop("$defs", {}))
    schemas[model.__name__] = schema
    return {"$ref": _REF.format(model=model.__name__)}
