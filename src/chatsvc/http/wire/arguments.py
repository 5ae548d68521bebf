"""Values of a query string, checked. Knows nothing about routes."""

from __future__ import annotations

from flask import Request

from chatsvc.errors import InvalidRequest

_MAX_DIGITS = 9  # fits every number of a database, and ``int`` takes no time for it


def text(incoming: Request, name: str) -> str | None:
    """The value of that name; None where it was not given.

    Raises:
        InvalidRequest: it has a NUL, which PostgreSQL does not take.
    """
    value = incoming.args.get(name)
    if value is not None and "\0" in value:
        raise InvalidRequest("The character NUL is not allowed.", param=name)
    return value


def number(incoming: Request, name: str, default: int, least: int, most: int) -> int:
    """A whole number between two bounds; ``default`` where it was not given.

    Raises:
        InvalidRequest: it is given twice, is no number, or is out of range.
    """
    given = incoming.args.getlist(name)
    if not given:
        return default
    digits = given[0]
    if len(given) == 1 and digits.isascii() and digits.isdigit() and len(digits) <= _MAX_DIGITS:
        value = int(digits)
        if least <= value <= most:
            return value
    raise InvalidRequest(f"{name}: a number from {least} to {most}.", param=name, code="invalid_value")
