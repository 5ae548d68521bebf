"""Holds what an application answers to what its OpenAPI document says."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
from flask import Flask, Response, request

from chatsvc.http.wire import routing


class Held:
    """Looks at every answer of an application; ``findings`` are those that the document does not allow."""

    def __init__(self, app: Flask) -> None:
        self.findings: list[str] = []
        self._document: dict[str, Any] | None = None
        self._app = app
        app.after_request(self._look)

    def validator(self, schema: dict[str, Any]) -> jsonschema_rs.Validator:
        """Of a schema of the document."""
        return jsonschema_rs.validator_for({**schema, "components": self.document["components"]})

    @property
    def document(self) -> dict[str, Any]:
        """The document."""
        if self._document is None:
            view: Any = self._app.view_functions["openapi.openapi"]
            self._document = view.__self__.document
        return self._document

    def resolved(self, answer: dict[str, Any]) -> dict[str, Any]:
        """An answer of an operation, found where it refers to."""
        name = answer.get("$ref", "").rpartition("/")[2]
        return self.document["components"]["responses"][name] if name else answer

    def _look(self, response: Response) -> Response:
        rule = request.url_rule
        operation = self.document["paths"].get(routing.template(rule), {}).get(request.method.lower()) if rule else None
        if operation is not None and response.status_code != 405:
            self._hold(operation, response)
        return response

    def _hold(self, operation: dict[str, Any], response: Response) -> None:
        where = f"{operation['operationId']} {response.status_code}"
        described = self.resolved(operation["responses"].get(str(response.status_code), {}))
        kinds = described.get("content", {})
        if response.status_code == 304:
            return
        if not described:
            self.findings.append(f"{where} is not in the document")
        elif kinds and not {response.mimetype, "*/*"} & set(kinds) and response.mimetype != "text/html":
            self.findings.append(f"{where} has the media type {response.mimetype}")
        elif response.mimetype == "application/json" and not response.is_streamed:
            schema = kinds["application/json"]["schema"]
            self.findings += [
                f"{where}: {error.message}" for error in self.validator(schema).iter_errors(response.json)
            ]
