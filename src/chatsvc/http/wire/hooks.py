"""Around every request: its id, address, path, method, token and scope, in this order; afterwards one log line.

The steps 1–3 of a request's way (``docs/explanation/request-path.md``); a view reads the body itself (4).
Knows nothing about what a route does.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from flask import Flask, Response, request
from werkzeug.exceptions import NotFound as WerkzeugNotFound
from werkzeug.routing import RequestRedirect, Rule

from chatsvc.audit.log import AuditLog
from chatsvc.errors import AuthenticationFailed, InvalidRequest, NotFound, PermissionRefused
from chatsvc.guard.gate import Credentials, Gate
from chatsvc.http.wire import context, cors, routing
from chatsvc.observe.metrics import Metrics

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_HOST = re.compile(r"[^\s,/@?#]+")
_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

# The largest body of a route that needs no token; a name and a password are far smaller.
_MAX_PUBLIC_BODY = 64 * 1024
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

_log = logging.getLogger("chatsvc.access")


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the hooks need."""

    gate: Gate
    audit: AuditLog
    metrics: Metrics
    scraper_networks: Collection[IPv4Network | IPv6Network] = ()
    cors_origins: Collection[str] = ()
    clock: Callable[[], float] = time.monotonic
    new_id: Callable[[], str] = lambda: secrets.token_hex(16)


def install(app: Flask, needs: Hooks) -> None:
    """Put the hooks around every request of the app."""

    def before() -> Response | None:
        context.begin(request_id(request.headers.get("X-Request-Id"), needs.new_id), needs.clock())
        try:
            return _admit(app, needs)
        except (AuthenticationFailed, PermissionRefused) as error:
            # Counted, not recorded one by one: a flood cannot fill the disk. A broken log does not undo the denial.
            needs.audit.count_denial(context.facts("request.denied"), error.reason)
            raise

    def after(response: Response) -> Response:
        now = context.current()
        response.headers["X-Request-Id"] = now.id
        for name, value in _ALWAYS.items():
            response.headers.setdefault(name, value)
        if needs.cors_origins:
            response.vary.add("Origin")
        if now.cors_origin is not None:
            cors.allow(response, now.cors_origin)
        route = request.url_rule.rule if request.url_rule else "-"
        method = request.method if request.method in _METHODS else "-"  # callers must not create new label values
        labels, line = (route, method, response.status_code), _log_line(response)
        response.call_on_close(lambda: _close(needs, now, labels, line))
        return response

    app.before_request(before)
    app.after_request(after)


def request_id(unverified: str | None, new_id: Callable[[], str]) -> str:
    """The client's id if it is 1–128 harmless characters, else a new one."""
    return unverified if unverified is not None and _REQUEST_ID.fullmatch(unverified) else new_id()


def _admit(app: Flask, needs: Hooks) -> Response | None:
    """None means admitted. A browser's CORS preflight is answered here."""
    now = context.current()
    # (1) address: for every path, also those that do not exist
    peer, forwarded_for = request.environ.get("REMOTE_ADDR") or "", request.headers.getlist("X-Forwarded-For")
    now.address = needs.gate.find_address(peer, forwarded_for)  # set first, so that a refusal is logged with it
    needs.gate.admit_address(peer, forwarded_for)
    # RFC 9112 section 3.2: no Host, or two (a server joins them with a comma), is 400.
    if not _HOST.fullmatch(request.environ.get("HTTP_HOST", "")):
        raise InvalidRequest("Send exactly one valid Host header.")
    now.cors_origin = cors.listed_origin(request, needs.cors_origins)
    # (-) path and method: 404 and 405 tell a listed address nothing that /openapi.json does not
    rule = _rule(app)
    # A preflight carries no token. Its answer shows the methods of a route, which are no secret.
    if now.cors_origin is not None and cors.is_preflight(request):
        return cors.preflight_answer(request)
    if routing.is_open_to_scrapers(app, rule) and any(now.address in network for network in needs.scraper_networks):
        return None
    # (2) token, (3) scope
    requirement = routing.requirement_of(app, rule)
    assert requirement is not None, "create_app refuses routes without a declared requirement"
    if requirement.kind == "public":
        # One byte above the limit, see http/wire/schema.py: read_body.
        most = _MAX_PUBLIC_BODY + 1
        request.max_content_length = min(request.max_content_length or most, most)
    credentials = Credentials(
        authorization=tuple(request.headers.getlist("Authorization")),
        api_key=tuple(request.headers.getlist("X-Api-Key")),
    )
    now.principal = needs.gate.authenticate(credentials, requirement)
    return None


def _rule(app: Flask) -> Rule:
    """The route of the request."""
    problem = request.routing_exception
    if "\0" in request.path:  # no name or id contains NUL, and PostgreSQL refuses it
        raise NotFound
    if isinstance(problem, RequestRedirect):  # Flask would answer it with a redirect
        raise NotFound
    if isinstance(problem, WerkzeugNotFound) and request.path.startswith("/v1/"):
        there = ", ".join(routing.routes_below(app, "/v1/"))
        raise NotFound(f"No such path. The routes below /v1 are: {there}.")
    if problem is not None:
        raise problem
    assert request.url_rule is not None, "a request that was routed has a rule"
    return request.url_rule


def _log_line(response: Response) -> dict[str, object]:
    now = context.current()
    return {
        "request_id": now.id,
        "address": str(now.address) if now.address else None,
        "actor": now.principal.name if now.principal else None,
        "method": request.method,
        "path": request.path,
        "status": response.status_code,
        "code": now.error_code,
    }


def _close(needs: Hooks, now: context.CurrentRequest, labels: tuple[str, str, int], line: dict[str, object]) -> None:
    """Called after the last byte, also of a stream."""
    duration_s = needs.clock() - now.started_at
    needs.metrics.observe_request(*labels, duration_s)
    _log.info("request", extra={"fields": {**line, **now.log, "duration_ms": round(duration_s * 1000, 3)}})
