"""OpenAI's ``response_format``: from the wire to the grammar that the completion obeys.

Only its form is checked here; whether a schema's keywords are supported the engine finds out when it compiles it.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import AfterValidator, WithJsonSchema

from chatsvc.engine.protocol import MAX_GRAMMAR_BYTES, Grammar

_MAX_NAME_CHARS = 64
_ANY_OBJECT: dict[str, Any] = {"type": "object"}


def _grammar(value: Any) -> Grammar | None:
    kind = value.get("type") if isinstance(value, dict) else None
    if value is None or kind == "text":
        return None
    if kind == "json_object":
        return _of_schema(_ANY_OBJECT)
    if kind != "json_schema":
        raise ValueError('the type is "text", "json_object" or "json_schema"')
    named = value.get("json_schema")
    if not isinstance(named, dict) or not isinstance(named.get("schema"), dict):
        raise ValueError("json_schema.schema must be an object: a JSON Schema")  # noqa: TRY004 - pydantic takes ValueError
    name = named.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME_CHARS:
        raise ValueError(f"json_schema.name must be a text of at most {_MAX_NAME_CHARS} characters")
    if not isinstance(named.get("strict"), bool | None):
        raise ValueError("json_schema.strict must be true or false; the answer obeys the schema either way")  # noqa: TRY004
    return _of_schema(named["schema"])


def _of_schema(schema: dict[str, Any]) -> Grammar:
    text = json.dumps(schema, ensure_ascii=False)
    if len(text.encode()) > MAX_GRAMMAR_BYTES:
        raise ValueError(f"the schema has more than {MAX_GRAMMAR_BYTES} bytes; send a smaller one")
    return Grammar("json_schema", text)


_NAMED = {
    "type": "object",
    "required": ["name", "schema"],
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": _MAX_NAME_CHARS},
        "strict": {"type": ["boolean", "null"]},
        "schema": {"type": "object"},
    },
}
_FORMS = [
    {"type": "null"},
    {"type": "object", "required": ["type"], "properties": {"type": {"enum": ["text", "json_object"]}}},
    {
        "type": "object",
        "required": ["type", "json_schema"],
        "properties": {"type": {"const": "json_schema"}, "json_schema": _NAMED},
    },
]
ResponseFormat = Annotated[Any, AfterValidator(_grammar), WithJsonSchema({"anyOf": _FORMS})]
