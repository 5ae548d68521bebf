"""JSON text to values, by RFC 8259 and no further: UTF-8 only, no duplicate key, no NaN, bounded in depth and digits.

Knows nothing about what the values mean. ``param`` of an error is the key's name, or None where the text is not JSON.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from chatsvc.errors import InvalidRequest

MAX_DEPTH = 32
MAX_INTEGER_DIGITS = 40
_MAX_EXACT = 2**53

_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


class _NotANumber:
    """Stands where ``NaN`` or ``Infinity`` stood, until its key is known."""


_NOT_A_NUMBER = _NotANumber()


def loads(data: bytes) -> Any:
    """Parse a body.

    Raises:
        InvalidRequest: it is not JSON, or JSON that two parsers could read differently.
    """
    text = _decode(data)
    _check_depth(text)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=lambda _: _NOT_A_NUMBER,
            parse_int=_integer,
            parse_float=_number,
        )
    except (json.JSONDecodeError, RecursionError) as error:
        raise InvalidRequest("The body is not JSON; send one JSON object in UTF-8.", code="invalid_json") from error
    _refuse_not_a_number(value, None)
    return value


def _decode(data: bytes) -> str:
    if data.startswith(b"\xef\xbb\xbf"):
        # RFC 8259 section 8.1: a parser may ignore a byte order mark; two parsers that differ are a way in.
        raise InvalidRequest("The body starts with a byte order mark; send plain UTF-8.", code="invalid_json")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest("The body is not UTF-8.", code="invalid_json") from error


def _check_depth(text: str) -> None:
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        bracket = match[0]
        if bracket in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise InvalidRequest(f"The body is nested deeper than {MAX_DEPTH} levels.", code="invalid_json")
        elif bracket in "]}":
            depth -= 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        shown = name.encode("utf-8", "replace").decode()
        if name in result:
            raise InvalidRequest(f"The key {shown!r} is there twice.", param=shown, code="duplicate_key")
        if value is _NOT_A_NUMBER:
            raise InvalidRequest(f"The value of {shown!r} is not a number in JSON.", param=shown, code="invalid_json")
        result[name] = value
    return result


def _integer(digits: str) -> int:
    if len(digits) > MAX_INTEGER_DIGITS:
        raise InvalidRequest(f"A number has more than {MAX_INTEGER_DIGITS} digits.", code="invalid_json")
    return int(digits)


def _number(digits: str) -> Any:
    value = float(digits)
    if not math.isfinite(value):
        return _NOT_A_NUMBER
    # JSON has one kind of number, and JSON Schema calls 5.0 an integer.
    return int(value) if value.is_integer() and abs(value) < _MAX_EXACT else value


def _refuse_not_a_number(value: Any, name: str | None) -> None:
    """What an object's hook could not see: NaN at the top or inside an array."""
    if value is _NOT_A_NUMBER:
        raise InvalidRequest("NaN and Infinity are not numbers in JSON.", param=name, code="invalid_json")
    if isinstance(value, list):
        for item in value:
            _refuse_not_a_number(item, name)
    elif isinstance(value, dict):
        for key, item in value.items():
            _refuse_not_a_number(item, key.encode("utf-8", "replace").decode())
