"""Logging in and out: ``/login``, ``/refresh``, ``/logout``, ``/password``, ``/me``, and the public keys.

The audit record begins before a password is checked; for an address that fails often, only before a token is made.
While the log cannot be written, every login is refused (503). Knows nothing about how a password or a token is checked.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypedDict

import msgspec
from flask import Response, jsonify, request
from pydantic import Field

from chatsvc.audit.log import AuditLog
from chatsvc.errors import LimitExceeded, NotFound, PermissionRefused
from chatsvc.guard.accounts.accounts import Accounts
from chatsvc.guard.accounts.external import LoggedIn
from chatsvc.guard.accounts.login import Login
from chatsvc.guard.accounts.passwords import check_password_rules
from chatsvc.guard.credentials.keyring import KeyRing
from chatsvc.guard.credentials.sessions import Sessions
from chatsvc.guard.credentials.tokens import Claims, TokenPair
from chatsvc.guard.gate import Gate
from chatsvc.guard.principal import ANY_PRINCIPAL, PUBLIC, REFRESH_TOKEN, ClientAddress
from chatsvc.http.api.recording import recorded, recorded_attempt
from chatsvc.http.wire import context, tokens
from chatsvc.http.wire.routing import Operation, like, requires, route
from chatsvc.http.wire.schema import Body, Text, parse_json

_NOT_FOR_KEYS = "An API key cannot do this; log in and send the access token."


class LoginBody(Body):
    """A name and its password."""

    username: Text = Field(examples=["alice"])
    password: Text = Field(examples=["correct horse battery staple"])


class PasswordBody(Body):
    """The current password, and the new one."""

    current: Text = Field(examples=["correct horse battery staple"])
    new: Text = Field(examples=["a longer sentence that only I know"])


class TokenAnswer(TypedDict):
    """An access token, and the refresh token to exchange for the next pair."""

    access_token: Annotated[str, like("eyJhbGciOiJFZERTQSIs…")]
    refresh_token: Annotated[str, like("eyJhbGciOiJFZERTQSIs…")]
    token_type: Literal["Bearer"]
    expires_in: Annotated[
        int, msgspec.Meta(ge=0, examples=[900], description="Lifetime of the access token in seconds.")
    ]


class Standing(TypedDict):
    """A principal's limits, or what is left of each."""

    requests_per_minute: Annotated[int, like(60)]
    tokens_per_day: Annotated[int, like(200_000)]
    concurrent_requests: Annotated[int, like(4)]


class OwnRequest(TypedDict):
    """A request that runs (position 0) or waits in the queue."""

    position: Annotated[int, like(1)]
    estimate_s: Annotated[float, like(2.5)] | None


class Me(TypedDict):
    """The caller. ``session`` is set for a token, ``key`` for an API key."""

    principal: Annotated[str, like("alice")]
    account_id: Annotated[str, like("0f8b6c1e2d3a4b5c8d9e0f1a2b3c4d5e")]
    roles: list[Annotated[str, like("user")]]
    scopes: list[Annotated[str, like("chat")]]
    session: Annotated[str, like("5e1c7a9b3d2f4e6a8b0c1d2e3f4a5b6c")] | None
    key: Annotated[str, like(None)] | None
    expires_at: Annotated[float, like(1_767_225_600)] | None
    limits: Standing
    remaining: Standing
    requests: list[OwnRequest]


class PublicKey(TypedDict):
    """A public key, as RFC 8037 writes it."""

    kty: Literal["OKP"]
    crv: Literal["Ed25519"]
    use: Literal["sig"]
    alg: Literal["EdDSA"]
    kid: Annotated[str, like("3f2a9c41")]
    x: Annotated[str, like("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo")]


class PublicKeys(TypedDict):
    """A JSON Web Key Set (RFC 7517)."""

    keys: list[PublicKey]


@dataclass(frozen=True, slots=True)
class AuthViews:
    """The views, and what they need."""

    TAG: ClassVar = "session"

    gate: Gate
    logins: Login
    accounts: Accounts
    sessions: Sessions
    ring: KeyRing
    audit: AuditLog

    @route("POST", "/login")
    @requires(PUBLIC)
    @Operation(body=LoginBody, answer=TokenAnswer, errors=(401, 429))
    def login(self) -> Response:
        """Log in: a name and a password for a pair of tokens."""
        body = parse_json(request, LoginBody)
        facts = context.facts("auth.login", attempted_name=body.username)

        def check() -> LoggedIn:
            return self.logins.verify(body.username, body.password, _address())

        def enter(found: LoggedIn) -> tuple[str, str, TokenPair]:
            return found.account_id, *self.sessions.start(found.account_id, str(_address()))

        try:
            self.logins.check_throttle(body.username, _address())
        except LimitExceeded as error:
            # Throttled attempts are counted, not recorded one by one: a flood of them must not fill the disk.
            self.audit.count_denial(facts, error.code or "login_throttled")
            raise
        _, _, pair = recorded_attempt(
            self.audit,
            facts,
            check,
            enter,
            details=lambda done: {"account": done[0], "started_session": done[1]},
        )
        return token_answer(pair)

    @route("POST", "/refresh")
    @requires(REFRESH_TOKEN)
    @Operation(answer=TokenAnswer)
    def refresh(self) -> Response:
        """Exchange a refresh token for the next pair of tokens; it can be used once."""
        caller = context.principal()
        claims = Claims(caller.account_id, caller.sid or "", caller.jti or "", 0, caller.expires_at or 0)
        facts = context.facts("auth.refresh")
        return token_answer(recorded(self.audit, facts, lambda: self.sessions.refresh(claims, str(_address()))))

    @route("POST", "/logout")
    @requires(ANY_PRINCIPAL)
    @Operation(status=204)
    def logout(self) -> Response:
        """Log out: every token of the session is invalid at once.

        An API key has no session; an administrator revokes it.
        """
        caller = context.principal()
        if caller.sid is None:
            raise PermissionRefused("an API key cannot log out", message=_NOT_FOR_KEYS)
        sid = caller.sid

        def act() -> None:
            with suppress(NotFound):  # a parallel logout has ended it already
                self.sessions.end(sid, "logout")

        recorded(self.audit, context.facts("auth.logout"), act)
        return Response(status=204)

    @route("POST", "/password")
    @requires(ANY_PRINCIPAL)
    @Operation(body=PasswordBody, status=204, errors=(409, 429))
    def password(self) -> Response:
        """Change your own password; every other session of the account ends."""
        body = parse_json(request, PasswordBody)
        caller = context.principal()
        if caller.sid is None:
            raise PermissionRefused("an API key cannot change a password", message=_NOT_FOR_KEYS)
        check_password_rules(body.new)

        def act() -> None:
            self.logins.verify_current(caller.name, body.current, _address())
            self.accounts.set_password(caller.name, body.new, but_sid=caller.sid)

        recorded(self.audit, context.facts("auth.password"), act)
        return Response(status=204)

    @route("GET", "/me")
    @requires(ANY_PRINCIPAL)
    @Operation(answer=Me)
    def me(self) -> dict[str, Any]:
        """Your principal, scopes and limits, what is left of each limit, and your requests that run or wait."""
        caller = context.principal()
        limits, remaining = self.gate.standing(caller)
        return {
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
                for ticket in self.gate.queue.tickets_of(caller.account_id)
            ],
        }

    @route("GET", "/.well-known/jwks.json")
    @requires(PUBLIC)
    @Operation(answer=PublicKeys)
    def jwks(self) -> Response:
        """The public keys that verify tokens (JWKS); none where tokens are signed with a secret (HS256)."""
        return jsonify(self.ring.jwks())


def token_answer(pair: TokenPair) -> Response:
    """The pair on the wire."""
    answer = jsonify(tokens.signed_pair(pair))
    answer.headers["Cache-Control"] = "no-store"  # RFC 6749 5.1
    return answer


def _address() -> ClientAddress:
    address = context.current().address
    assert address is not None, "the hooks determine the address before any view runs"
    return address
