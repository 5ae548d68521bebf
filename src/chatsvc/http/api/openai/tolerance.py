"""Fields of ``/v1`` that are accepted and ignored, and how the answer names them.

Clients of OpenAI's API send hints, fields of other servers, and ``null`` for what they leave out. Knows nothing about
what a field means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from chatsvc.errors import InvalidRequest
from chatsvc.http.wire.schema import Body

HEADER = "x-ignored-parameters"
MAX_NAMES = 32
MAX_NAME_CHARS = 64

# A name comes from the caller: other characters of it are not put into a header.
_UNSAFE = re.compile(r"[^A-Za-z0-9_.\-]")


class _Ignored:
    """Marks a declared field that changes nothing."""


def _asks_for_nothing(value: Any) -> Any:
    if value not in (None, False, 0, [], {}):
        raise ValueError("this is not supported here yet; leave it out")
    return value


# A hint in OpenAI's API: any value is accepted, and none is kept in memory.
Hint = Annotated[Any, _Ignored(), BeforeValidator(lambda _: True), Field(None, description="Accepted and ignored.")]
# A field that would change the answer and is not supported: only a value that asks for nothing is accepted.
Unsupported = Annotated[
    Any,
    AfterValidator(_asks_for_nothing),
    WithJsonSchema({"enum": [None, False, 0, [], {}]}),
    Field(None, description="Not supported here; refused if it would change the answer."),
]


class Tolerant(Body):
    """An object of ``/v1``: ``null`` means left out; unknown fields are accepted, their values dropped."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _null_is_left_out(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {
                name: item if name in cls.model_fields else True for name, item in value.items() if item is not None
            }
        return value

    def ignored_fields(self) -> set[str]:
        """Declared fields that were sent and are ignored."""
        return {
            name
            for name in self.model_fields_set & set(type(self).model_fields)
            if any(isinstance(mark, _Ignored) for mark in type(self).model_fields[name].metadata)
        }


def ignored(body: Tolerant, *, refuses_unknown: bool) -> tuple[str, ...]:
    """The paths of all ignored fields, without indexes of lists: ``user``, ``messages.name``.

    Raises:
        InvalidRequest: ``refuses_unknown`` is set, and one of them is not declared.
    """
    names = set()
    for path, part in _parts("", body):
        unknown = set(part.model_extra or ())
        if unknown and refuses_unknown:
            name = min(unknown).encode("utf-8", "replace").decode()[:100]
            raise InvalidRequest(f"Unknown field {name!r}.", param=name, code="unknown_field")
        names |= {path + name for name in unknown | part.ignored_fields()}
    return tuple(sorted(names))


def headers(names: tuple[str, ...]) -> dict[str, str]:
    """The header that names the ignored fields: bounded, and only with characters that are safe in a header."""
    if not names:
        return {}
    shown = [_UNSAFE.sub("?", name[:MAX_NAME_CHARS]) for name in names[:MAX_NAMES]]
    return {HEADER: ", ".join(shown + ["..."] * (len(names) > MAX_NAMES))}


def _parts(path: str, value: object) -> Iterator[tuple[str, Tolerant]]:
    """The objects of a body, each with the prefix of its fields' paths."""
    if isinstance(value, Tolerant):
        yield path, value
        for name in type(value).model_fields:
            yield from _parts(f"{path}{name}.", getattr(value, name))
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, BaseModel):
                yield from _parts(path, item)
