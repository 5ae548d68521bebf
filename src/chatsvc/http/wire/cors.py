"""CORS: which web pages of other origins may call this service (Fetch standard, section 3.3).

A page of a listed origin is treated like any client: its address is checked first, and it must send a token.
Credentials mode is never allowed, so a browser sends no cookie of ours. For an origin that is not listed no header is
sent, and the browser does not let the page read the answer. Knows nothing about routes.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from flask import Request, Response

_MAX_AGE_S = 600
# Headers that a script may read.
_EXPOSED = (
    "Retry-After, X-Request-Id, x-ignored-parameters, "
    "x-ratelimit-limit-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-requests, "
    "x-ratelimit-remaining-tokens, x-ratelimit-reset-requests, x-ratelimit-reset-tokens"
)
_HEADER_NAME = re.compile(r"[a-z0-9-]{1,64}")
_MAX_HEADERS = 64
# Only a proxy may send these.
_ADDRESS_HEADERS = ("forwarded", "x-forwarded-", "x-real-ip")


def listed_origin(request: Request, origins: Collection[str]) -> str | None:
    """The origin of the page that sent the request, if it is listed."""
    given = request.headers.getlist("Origin")
    return given[0] if len(given) == 1 and given[0] in origins else None


def is_preflight(request: Request) -> bool:
    """Whether this is a preflight: the browser's own question, without the page's token, about what it may send."""
    return request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers


def preflight_answer(request: Request) -> Response:
    """Which methods and headers may be sent to the route."""
    methods = request.url_rule.methods if request.url_rule is not None else None
    asked = request.headers.get("Access-Control-Request-Headers", "").lower().split(",")
    names = [name for name in (name.strip() for name in asked[:_MAX_HEADERS]) if _HEADER_NAME.fullmatch(name)]
    answer = Response(status=204)
    answer.headers["Access-Control-Allow-Methods"] = ", ".join(sorted(methods or ()))
    answer.headers["Access-Control-Allow-Headers"] = ", ".join(
        name for name in names if not name.startswith(_ADDRESS_HEADERS)
    )
    answer.headers["Access-Control-Max-Age"] = str(_MAX_AGE_S)
    return answer


def allow(response: Response, origin: str) -> None:
    """Let the page of a listed origin read an answer, errors too."""
    response.headers["Access-Control-Allow-Origin"] = origin
    response.headers["Access-Control-Expose-Headers"] = _EXPOSED
