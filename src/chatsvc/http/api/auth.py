"""Logging in and out: ``/login``, ``/refresh``, ``/logout``, ``/password``, ``/me``, and the public keys.

The audit record begins before a password is looked at and before a token is made; for an address that fails often, only
before a token is made. A log that cannot be written means that nobody comes in (503). Knows nothing about how a
password or a token is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from flask import Blueprint, Response, jsonify, request

from chatsvc.audit.facts import Facts, Result
from chatsvc.audit.log import AuditLog
from chatsvc.errors import AuditUnavailable, ChatsvcError, LimitExceeded, NotFound, PermissionRefused, RequestError
from chatsvc.guard.accounts.accounts import Accounts
from chatsvc.guard.accounts.login import Login
from chatsvc.guard.accounts.passwords import check_password_rules
from chatsvc.guard.credentials.keyring import KeyRing
from chatsvc.guard.credentials.sessions import RefreshTokenReused, Sessions
from chatsvc.guard.credentials.tokens import Claims, TokenPair
from chatsvc.guard.gate import Gate
from chatsvc.guard.principal import ANY_PRINCIPAL, PUBLIC, REFRESH_TOKEN, ClientAddress
from chatsvc.guard.providers.directory import LoggedIn
from chatsvc.http.wire import context, problems, tokens
from chatsvc.http.wire.routing import requires
from chatsvc.http.wire.schema import Body, Text, parse_json

Done = TypeVar("Done")
Who = TypeVar("Who")

_NOT_FOR_KEYS = "An API key cannot do this; log in and send the access token."


class LoginBody(Body):
    """``POST /login``."""

    username: Text
    password: Text


class PasswordBody(Body):
    """``POST /password``."""

    current: Text
    new: Text


@dataclass(frozen=True, slots=True)
class AuthParts:
    """Everyone these routes ask."""

    gate: Gate
    login: Login
    accounts: Accounts
    sessions: Sessions
    ring: KeyRing
    audit: AuditLog


def blueprint(parts: AuthParts) -> Blueprint:
    """The routes."""
    routes = Blueprint("auth", __name__)
    views = _Views(parts)
    routes.post("/login")(requires(PUBLIC)(views.login))
    routes.post("/refresh")(requires(REFRESH_TOKEN)(views.refresh))
    routes.post("/logout")(requires(ANY_PRINCIPAL)(views.logout))
    routes.post("/password")(requires(ANY_PRINCIPAL)(views.password))
    routes.get("/me")(requires(ANY_PRINCIPAL)(views.me))
    routes.get("/.well-known/jwks.json")(requires(PUBLIC)(views.jwks))
    return routes


class _Views:
    """The views; methods, so that they share their parts without globals."""

    def __init__(self, parts: AuthParts) -> None:
        self._parts = parts

    def login(self) -> Response:
        """A name and a password for a pair of tokens."""
        body = parse_json(request, LoginBody)
        facts = context.facts("auth.login", attempted_name=body.username)

        def check() -> LoggedIn:
            return self._parts.login.verify(body.username, body.password, _address())

        def enter(found: LoggedIn) -> tuple[str, str, TokenPair]:
            return found.account_id, *self._parts.sessions.start(found.account_id, str(_address()))

        try:
            self._parts.login.check_throttle(body.username, _address())
        except LimitExceeded as error:
            # One who has to wait is counted, not recorded one by one: a flood of tries must not fill the disk.
            self._parts.audit.count_denial(facts, error.code or "login_throttled")
            raise
        _, _, pair = recorded_attempt(
            self._parts.audit,
            facts,
            check,
            enter,
            details=lambda done: {"account": done[0], "started_session": done[1]},
        )
        return token_answer(pair)

    def refresh(self) -> Response:
        """Spend a refresh token for the next pair."""
        caller = context.principal()
        claims = Claims(caller.account_id, caller.sid or "", caller.jti or "", 0, caller.expires_at or 0)
        facts = context.facts("auth.refresh")
        return token_answer(self._recorded(facts, lambda: self._parts.sessions.refresh(claims, str(_address()))))

    def logout(self) -> Response:
        """End the calling session. A key has none: it is revoked by an administrator."""
        caller = context.principal()
        if caller.sid is None:
            raise PermissionRefused("an API key cannot log out", message=_NOT_FOR_KEYS)
        sid = caller.sid

        def act() -> None:
            with suppress(NotFound):  # a parallel logout was quicker: it has ended all the same
                self._parts.sessions.end(sid, "logout")

        self._recorded(context.facts("auth.logout"), act)
        return Response(status=204)

    def password(self) -> Response:
        """Change one's password; every other session of the account is dead then."""
        body = parse_json(request, PasswordBody)
        caller = context.principal()
        if caller.sid is None:
            raise PermissionRefused("an API key cannot change a password", message=_NOT_FOR_KEYS)
        check_password_rules(body.new)

        def act() -> None:
            self._parts.login.verify_current(caller.name, body.current, _address())
            self._parts.accounts.set_password(caller.name, body.new, but_sid=caller.sid)

        self._recorded(context.facts("auth.password"), act)
        return Response(status=204)

    def me(self) -> Response:
        """Who is calling, and what is left."""
        caller = context.principal()
        limits, remaining = self._parts.gate.standing(caller)
        return jsonify(
            {
                "principal": caller.name,
                "account_id": caller.account_id,
                "roles": list(caller.roles),
                "scopes": sorted(caller.scopes),
                "session": caller.sid,
                "key": caller.key_id,
                "expires_at": caller.expires_at,
                "limits": limits,
                "remaining": remaining,
                "requests": [
                    {"position": ticket.position(), "estimate_s": ticket.estimate_s()}
                    for ticket in self._parts.gate.queue.tickets_of(caller.account_id)
                ],
            }
        )

    def jwks(self) -> Response:
        """The public keys tokens are signed with; none where the keys are secret (HS256)."""
        return jsonify(self._parts.ring.jwks())

    def _recorded(self, facts: Facts, act: Callable[[], Done]) -> Done:
        return recorded(self._parts.audit, facts, act)


def recorded(
    audit: AuditLog,
    facts: Facts,
    act: Callable[[], Done],
    details: Callable[[Done], Mapping[str, Any]] = lambda _: {},
) -> Done:
    """Act between a durable ``begin`` and an ``end`` that says how it went.

    Raises:
        AuditUnavailable: nothing was done.
    """
    record = audit.begin(facts)
    result = Result("error", status=500, reason="server_error")
    try:
        done = act()
        result = Result("allowed", status=200, details=details(done))
    except ChatsvcError as error:
        result = _result_of(error)
        raise
    else:
        return done
    finally:
        record.end(result)


def recorded_attempt(
    audit: AuditLog,
    facts: Facts,
    check: Callable[[], Who],
    enter: Callable[[Who], Done],
    details: Callable[[Done], Mapping[str, Any]],
) -> Done:
    """As :func:`recorded`, for somebody whom ``check`` finds out and ``enter`` lets in.

    From an address that fails often nothing is recorded before ``check``, and a failure is only counted: a flood of
    guesses with fresh names must not fill the disk. Nobody is let in without a begin, and nothing is checked while the
    log cannot be written.

    Raises:
        AuditUnavailable: nothing was checked.
    """
    if not audit.is_failing_often(facts):
        try:
            return recorded(audit, facts, lambda: enter(check()), details)
        except AuditUnavailable:
            raise
        except ChatsvcError:
            audit.count_failure(facts, is_recorded=True)
            raise
    if audit.problem() is not None:
        raise AuditUnavailable
    try:
        who = check()
    except ChatsvcError:
        audit.count_failure(facts, is_recorded=False)
        raise
    return recorded(audit, facts, lambda: enter(who), details)


def _result_of(error: ChatsvcError) -> Result:
    status = problems.status_and_type(error)[0]
    reason = getattr(error, "reason", None) or error.code
    details: dict[str, object] = {}
    if isinstance(error, RefreshTokenReused):
        details = {"ended_session": error.sid}
    return Result("denied" if isinstance(error, RequestError) else "error", status, reason, details=details)


def token_answer(pair: TokenPair) -> Response:
    """The pair on the wire."""
    answer = jsonify(tokens.signed_pair(pair))
    answer.headers["Cache-Control"] = "no-store"  # RFC 6749 5.1
    return answer


def _address() -> ClientAddress:
    address = context.current().address
    assert address is not None, "hooks have told the address before any view runs"
    return address
