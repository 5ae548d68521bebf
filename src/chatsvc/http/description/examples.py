"""An example value for a JSON Schema, composed of the examples of its parts. Knows nothing about routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class NoExample(Exception):
    """The schema has a part without an example."""


def example_of(schema: Mapping[str, Any], components: Mapping[str, Any]) -> Any:
    """A value that the schema allows.

    A part's own example is used first, then its first or only value; null if it is allowed and nothing else is known.
    An object has the properties that are required and those that have an example.

    Raises:
        NoExample: names what has none.
    """
    if "examples" in schema:
        return schema["examples"][0]
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        try:
            return example_of(components[name], components)
        except NoExample as error:
            raise NoExample(f"{name}: {error}") from None
    if "anyOf" in schema:
        return _first(schema["anyOf"], components)
    kind = schema.get("type")
    if kind == "object":
        return _object(schema, components)
    if kind == "array" and "items" in schema:
        return [example_of(schema["items"], components)]
    values = [schema["const"]] if "const" in schema else schema.get("enum", _VALUES.get(kind))
    if not values:
        raise NoExample(str(schema))
    return values[0]


_VALUES: Mapping[str | None, list[Any]] = {"null": [None], "boolean": [False]}


def _first(schemas: list[Mapping[str, Any]], components: Mapping[str, Any]) -> Any:
    for schema in schemas:
        try:
            return example_of(schema, components)
        except NoExample as error:
            problem = error
    raise problem


def _object(schema: Mapping[str, Any], components: Mapping[str, Any]) -> dict[str, Any]:
    required = schema.get("required", ())
    return {
        name: example_of(part, components)
        for name, part in schema.get("properties", {}).items()
        if name in required or "examples" in part or any("examples" in one for one in part.get("anyOf", ()))
    }
