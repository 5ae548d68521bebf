"""The table from errors to HTTP statuses, and the shape of an error on the wire.

``{"error": {"message", "type", "param", "code"}}``, always all four keys. Knows nothing about causes.
"""

from __future__ import annotations

import logging
import math
from typing import Annotated, TypedDict

from flask import Flask, Response, json
from werkzeug.exceptions import HTTPException
from werkzeug.exceptions import MethodNotAllowed as WerkzeugMethodNotAllowed

from chatsvc import errors
from chatsvc.http.pages import refusal
from chatsvc.http.wire import context
from chatsvc.http.wire.routing import like

# The most specific class of an error found in this table applies.
TABLE: dict[type[errors.ChatsvcError], tuple[int, str]] = {
    errors.InvalidRequest: (400, "invalid_request_error"),
    errors.AuthenticationFailed: (401, "authentication_error"),
    errors.PermissionRefused: (403, "permission_error"),
    errors.NotFound: (404, "not_found_error"),
    errors.MethodNotAllowed: (405, "invalid_request_error"),
    errors.Conflict: (409, "invalid_request_error"),
    errors.BodyTooLarge: (413, "invalid_request_error"),
    errors.UnsupportedMediaType: (415, "invalid_request_error"),
    errors.LimitExceeded: (429, "rate_limit_error"),
    errors.ClientGone: (499, "invalid_request_error"),
    errors.Overloaded: (503, "overloaded_error"),
    errors.Unavailable: (503, "service_unavailable"),
    errors.ChatsvcError: (500, "server_error"),
}


class ErrorParts(TypedDict):
    """``message`` names the remedy; ``param`` the part of the request that is wrong; ``code`` is stable."""

    message: Annotated[str, like("max_tokens: at most 4096 here.")]
    type: Annotated[str, like("invalid_request_error")]
    param: Annotated[str, like("max_tokens")] | None
    code: Annotated[str, like("invalid_value")] | None


class ErrorAnswer(TypedDict):
    """Every error of every route."""

    error: ErrorParts


_BY_STATUS: dict[int, type[errors.RequestError]] = {
    404: errors.NotFound,
    405: errors.MethodNotAllowed,
    413: errors.BodyTooLarge,
    415: errors.UnsupportedMediaType,
}
_SERVER_ERROR = errors.ChatsvcError(
    "Internal error. The operator finds the cause in the log by this answer's X-Request-Id.",
    code="server_error",
)

_log = logging.getLogger(__name__)


def status_and_type(error: errors.ChatsvcError) -> tuple[int, str]:
    """The row of the table."""
    return next(TABLE[cls] for cls in type(error).__mro__ if cls in TABLE)


def body_of(error: errors.ChatsvcError) -> ErrorAnswer:
    """The error as it goes over the wire, in an answer or as a stream's last event."""
    return {
        "error": {
            "message": error.message,
            "type": status_and_type(error)[1],
            "param": getattr(error, "param", None),
            "code": error.code,
        }
    }


def answer_to(error: errors.ChatsvcError) -> Response:
    """A whole answer with its headers."""
    status, _ = status_and_type(error)
    response = Response(json.dumps(body_of(error), ensure_ascii=False), status, mimetype="application/json")
    if isinstance(error, errors.AuthenticationFailed):
        response.headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, errors.LimitExceeded):
        response.headers.update(error.headers)
    if isinstance(error, errors.LimitExceeded | errors.Unavailable):
        response.headers["Retry-After"] = str(retry_after(error.retry_after_s))
    if context.is_begun():
        context.current().error_code = error.code
    return response


def retry_after(seconds: float) -> int:
    """Whole seconds between 1 and 120, as the contract says."""
    return 120 if not seconds < 120 else max(1, math.ceil(seconds))


def known(error: Exception) -> errors.ChatsvcError:
    """Any exception as one of ours: an unexpected one becomes a server error and is logged with its traceback."""
    if isinstance(error, errors.ModelFailed):  # expected: its message tells the operator what to do
        _log.error("%s", error.message)
        return error
    if isinstance(error, errors.ChatsvcError):
        if status_and_type(error)[0] == 500:
            _log.error("unexpected error", exc_info=error)
            return _SERVER_ERROR
        return error
    if isinstance(error, HTTPException) and (error.code or 500) < 500:
        kind = _BY_STATUS.get(error.code or 500)
        return kind() if kind else errors.InvalidRequest("The request is not valid HTTP for this service.")
    _log.error("unexpected error", exc_info=error)
    return _SERVER_ERROR


def install(app: Flask) -> None:
    """Answer every error in the contract's shape; a browser that opens an address gets a page instead."""

    def handle(error: Exception) -> Response:
        ours = known(error)
        response = answer_to(ours)
        if refusal.wants_page():
            refusal.show_as_page(response, ours)
        if isinstance(error, WerkzeugMethodNotAllowed):
            response.headers["Allow"] = ", ".join(sorted(error.valid_methods or ()))
        return response

    for kind in (errors.ChatsvcError, HTTPException, Exception):
        app.register_error_handler(kind, handle)
