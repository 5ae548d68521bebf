"""Step 4 of a request's way: from a body or a query string to a checked value.

A body passes media type, size and strict JSON, then a pydantic model that refuses unknown fields. Every limit on size
is here or in the models. Knows nothing about what a route does with the value.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

from flask import Request
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails
from werkzeug.exceptions import HTTPException

from chatsvc.errors import BodyTooLarge, InvalidRequest, UnsupportedMediaType
from chatsvc.http.wire import strict_json

# The largest body of a route that takes no text for the model.
MAX_PLAIN_BYTES = 64 * 1024
# A token is four or five characters of English or one or two of Chinese, so rarely more than eight on average; each
# takes six bytes when it is escaped as \uXXXX.
_BYTES_PER_TOKEN = 8 * 6
# Assumed while no model is ready: the context of Qwen1.5-0.5B-Chat.
_USUAL_CONTEXT_LENGTH = 32_768

# Of a number in a query string: it fits every column of the database.
_MAX_DIGITS = 9

# In place of pydantic's sentences that name its classes, or lists where a text may be meant. Minimum lengths are 1.
_PLAIN_SENTENCES = {"model_type": "Input should be an object", "too_short": "must not be empty"}

_SURROGATE = re.compile("[\ud800-\udfff]")


def _scalar_values(text: str) -> str:
    if "\0" in text:
        raise ValueError("the character NUL is not allowed")
    if not text.isascii() and _SURROGATE.search(text):
        raise ValueError("an unpaired surrogate is not a character")
    return text


# Any Unicode scalar value except NUL.
Text = Annotated[str, AfterValidator(_scalar_values), Field(json_schema_extra={"pattern": r"^[^\u0000]*$"})]


def max_chat_bytes(context_length: int | None) -> int:
    """The largest body of a chat: escaped text that fills the context, and the JSON around it."""
    return MAX_PLAIN_BYTES + _BYTES_PER_TOKEN * (context_length or _USUAL_CONTEXT_LENGTH)


class Body(BaseModel):
    """A request body: strict types (``"5"`` is no number), unknown fields refused, no input repeated in messages.

    Lists are ``fail_fast``: an error for each of a million items would take seconds and a gigabyte.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


def _digits(value: Any) -> Any:
    """``int`` accepts more than digits, and takes quadratic time."""
    if isinstance(value, str):
        if not (value.isascii() and value.isdigit() and len(value) <= _MAX_DIGITS):
            raise ValueError(f"a whole number of at most {_MAX_DIGITS} digits")
        return int(value)
    return value


# For a number in a query string. The last of its annotations: pydantic's schema leaves out bounds that follow it.
Digits = BeforeValidator(_digits)


class Query(BaseModel):
    """The parameters of a query string; unknown ones are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)


Model = TypeVar("Model", bound=BaseModel)


def parse_query(request: Request, model: type[Model]) -> Model:
    """Check the query string of a request.

    Raises:
        InvalidRequest: a parameter is repeated, missing or out of range; ``param`` names it.
    """
    known = {info.alias or name for name, info in model.model_fields.items()}
    given = {name: values for name, values in request.args.lists() if name in known}
    for name, values in given.items():
        if len(values) > 1:
            raise InvalidRequest(f"{name}: it must be sent only once.", param=name, code="invalid_value")
    return validate({name: values[0] for name, values in given.items()}, model)


def parse_json(request: Request, model: type[Model], *, max_bytes: int | None = None) -> Model:
    """Read and check the body of a request. Call it last: address, path, method, token and scope come before.

    Args:
        request: the current request.
        model: the body's.
        max_bytes: the largest body; None: the application's (``MAX_CONTENT_LENGTH``).

    Raises:
        UnsupportedMediaType: it is not ``application/json``.
        BodyTooLarge: it is too large, with or without a Content-Length.
        InvalidRequest: anything else that is wrong; ``param`` names it.
    """
    _check_media_type(request)
    if max_bytes is not None:
        request.max_content_length = max_bytes + 1
    data = read_body(request)
    with strict_json.parsing_lock(len(data)):
        return validate(strict_json.loads(data), model)


def read_body(request: Request) -> bytes:
    """All bytes of the body, bounded, whether it is chunked or not."""
    try:
        data = request.get_data(cache=True)
    except HTTPException:
        raise
    except Exception as error:  # the wire's edge: servers raise classes of their own for a malformed chunk
        raise InvalidRequest("The body is incomplete or its HTTP framing is invalid.", code="invalid_body") from error
    # Werkzeug is given one byte more than we take (see app.py): it refuses a chunked body of exactly its limit.
    if request.max_content_length is not None and len(data) >= request.max_content_length:
        raise BodyTooLarge
    return data


def validate(value: Any, model: type[Model]) -> Model:
    """Check parsed JSON against a model.

    Raises:
        InvalidRequest: the first problem that was found.
    """
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.", code="invalid_json")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _refusal(error.errors(include_url=False, include_context=False, include_input=False)) from error


def _check_media_type(request: Request) -> None:
    parameters = {name.lower(): value.lower() for name, value in request.mimetype_params.items()}
    if (
        request.mimetype != "application/json"
        or parameters.pop("charset", "utf-8") not in {"utf-8", "utf8"}
        or parameters
        or request.headers.get("Content-Encoding", "identity").lower() != "identity"
    ):
        raise UnsupportedMediaType


def _refusal(problems: list[ErrorDetails]) -> InvalidRequest:
    problem = _first_cause(problems)
    if problem["type"] == "extra_forbidden":
        name = _shown(problem["loc"][-1])
        return InvalidRequest(f"Unknown field {name!r}.", param=name, code="unknown_field")
    if problem["type"] == "value_error":
        # Our validators raise ValueError("param: sentence") where several fields do not fit together.
        return _own_refusal(problem)
    path = path_of(problem["loc"])
    sentence = _PLAIN_SENTENCES.get(problem["type"], problem["msg"])
    return InvalidRequest(f"{path}: {sentence}.", param=path, code="invalid_value")


def _first_cause(problems: list[ErrorDetails]) -> ErrorDetails:
    """The problem that probably causes the others: a wrong ``type``, an unknown name (``mesages``), else the first.

    Each member of a union reports its own problems of a field. The deepest is reported, preferring one about the value
    to one about its type.
    """
    for problem in problems:
        if problem["type"] == "literal_error" and problem["loc"][-1] == "type":
            return problem
    for problem in problems:
        if problem["type"] == "extra_forbidden":
            return problem
    field = problems[0]["loc"][:1]
    candidates = (problem for problem in problems if problem["loc"][:1] == field)
    return max(candidates, key=lambda p: (len(path_of(p["loc"])), not p["type"].endswith("_type")))


def _own_refusal(problem: ErrorDetails) -> InvalidRequest:
    path, sentence = path_of(problem["loc"]), problem["msg"].removeprefix("Value error, ")
    named, separator, rest = sentence.partition(": ")
    if separator and named.isidentifier():
        path, sentence = (f"{path}.{named}" if path else named), rest
    return InvalidRequest(f"{path}: {sentence}." if path else f"{sentence}.", param=path or None, code="invalid_value")


def path_of(location: tuple[int | str, ...]) -> str:
    """``("messages", 0, "role")`` -> ``messages[0].role``, without the names of union members that pydantic adds."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif _is_field(part):
            path += f".{_shown(part)}" if path else _shown(part)
    return path


def _is_field(part: str) -> bool:
    """False for the name of a union's member (``str``, ``list[Part]``), which pydantic puts into a location."""
    return (
        part.isidentifier()
        and part not in {"str", "float", "int", "bool", "none", "constrained"}
        and part == part.lower()
    )


def _shown(name: int | str) -> str:
    return str(name).encode("utf-8", "replace").decode()[:100]
