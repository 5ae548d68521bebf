"""JSON text to values, strictly by RFC 8259: UTF-8 only, no duplicate key, no NaN, bounded in depth and digits.

Callers without a token send these bytes (``POST /login``), so the time is linear in their length: one pass of Python's
parser, which refuses deep nesting by itself, and one walk over the values. Knows nothing about the meaning of the
values. ``param`` of an error is the key's name, or None where the text is not JSON.
"""

from __future__ import annotations

import json
import math
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from chatsvc.errors import InvalidRequest

MAX_DEPTH = 32
MAX_INTEGER_DIGITS = 40
_MAX_EXACT = 2**53
_MAX_SHOWN_CHARS = 100
_LARGE_BYTES = 64 * 1024

_one_large_body = threading.Lock()


class _NotANumber:
    """Stands for ``NaN`` or ``Infinity`` until its key is known."""


_NOT_A_NUMBER = _NotANumber()


def parsing_lock(num_bytes: int) -> AbstractContextManager[Any]:
    """A lock to hold while a body of ``num_bytes`` is parsed and checked.

    A body of brackets takes about sixty times its size in memory, so large bodies are parsed one at a time. The GIL
    would not let several progress faster.
    """
    return _one_large_body if num_bytes > _LARGE_BYTES else nullcontext()


def loads(data: bytes) -> Any:
    """Parse a body.

    Raises:
        InvalidRequest: it is not JSON, or JSON that two parsers could read differently.
    """
    text = _decode(data)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=lambda _: _NOT_A_NUMBER,
            parse_int=_integer,
            parse_float=_number,
        )
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError:
        # Not the cause: it holds the whole text, and a logger might print it.
        raise InvalidRequest("The body is not JSON; send one JSON object in UTF-8.", code="invalid_json") from None
    _check_values(value, None, MAX_DEPTH)
    return value


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"The body is nested deeper than {MAX_DEPTH} levels.", code="invalid_json")


def _decode(data: bytes) -> str:
    if data.startswith(b"\xef\xbb\xbf"):
        # RFC 8259 section 8.1 lets a parser ignore a byte order mark; two parsers that differ could be exploited.
        raise InvalidRequest("The body starts with a byte order mark; send plain UTF-8.", code="invalid_json")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        # Not the cause: it holds the whole body.
        raise InvalidRequest("The body is not UTF-8.", code="invalid_json") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            shown = _shown(name)
            raise InvalidRequest(f"The key {shown!r} appears twice.", param=shown, code="duplicate_key")
        if value is _NOT_A_NUMBER:
            shown = _shown(name)
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


def _check_values(value: Any, key: str | None, depth_left: int) -> None:
    """Refuse what the parser's hooks cannot see: NaN at the top or in an array, and too many levels."""
    if value is _NOT_A_NUMBER:
        param = None if key is None else _shown(key)
        raise InvalidRequest("NaN and Infinity are not numbers in JSON.", param=param, code="invalid_json")
    if not isinstance(value, list | dict):
        return
    if not depth_left:
        raise _too_deep()
    if isinstance(value, list):
        for item in value:
            _check_values(item, key, depth_left - 1)
    else:
        for name, item in value.items():
            _check_values(item, name, depth_left - 1)


def _shown(name: str) -> str:
    return name[:_MAX_SHOWN_CHARS].encode("utf-8", "replace").decode()
