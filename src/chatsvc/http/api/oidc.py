"""Logging in by an OpenID provider: away to it, back from it, and the tokens for the page.

The browser carries the state of a login in a signed cookie that no script can read, so any replica can take it back.
The tokens are never in an address: the page fetches them with a second signed cookie that lives for a minute. Who comes
back without a login is sent to the page as well, with one of two codes behind the ``#``; the page has a sentence for
each, and nothing that the provider says is repeated.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from flask import Blueprint, Response, redirect, request
from itsdangerous import BadData, URLSafeTimedSerializer
from werkzeug.wrappers import Response as AnyResponse

from chatsvc.audit.log import AuditLog
from chatsvc.errors import AuthenticationFailed
from chatsvc.guard.credentials.sessions import Sessions
from chatsvc.guard.credentials.tokens import TokenPair
from chatsvc.guard.principal import PUBLIC
from chatsvc.guard.providers.directory import LoggedIn, VouchedAccounts
from chatsvc.guard.providers.oidc import Flow, OidcProvider
from chatsvc.http.api.auth import recorded, recorded_attempt, token_answer
from chatsvc.http.wire import context
from chatsvc.http.wire.routing import requires

_FLOW, _LOGIN = "chatsvc-oidc-flow", "chatsvc-oidc-login"
_FLOW_S, _LOGIN_S = 600, 60
# RFC 6749 4.1.2.1 and OpenID Connect Core 3.1.2.6; no other text of a stranger's gets into the log.
_ERRORS = frozenset(
    {
        "account_selection_required",
        "consent_required",
        "interaction_required",
        "invalid_request",
        "invalid_request_object",
        "invalid_request_uri",
        "invalid_scope",
        "login_required",
        "registration_not_supported",
        "request_not_supported",
        "request_uri_not_supported",
        "server_error",
        "temporarily_unavailable",
        "unauthorized_client",
        "unsupported_response_type",
    }
)
_REFUSED = "The identity provider did not log you in; try again."


class _SaidNo(AuthenticationFailed):
    """Whoever decides at the provider, mostly the person, said no (RFC 6749 4.1.2.1)."""


@dataclass(frozen=True, slots=True)
class OidcParts:
    """Everyone these routes ask. ``secret`` signs the cookies."""

    provider: OidcProvider
    accounts: VouchedAccounts
    sessions: Sessions
    audit: AuditLog
    secret: bytes


def blueprint(parts: OidcParts) -> Blueprint:
    """The routes."""
    routes = Blueprint("oidc", __name__, url_prefix="/oidc")
    views = _Views(parts)
    routes.get("/login")(requires(PUBLIC)(views.login))
    routes.get("/callback")(requires(PUBLIC)(views.callback))
    routes.post("/tokens")(requires(PUBLIC)(views.tokens))
    return routes


class _Views:
    """The views; methods, so that they share their parts without globals."""

    def __init__(self, parts: OidcParts) -> None:
        self._parts = parts
        self._flows = URLSafeTimedSerializer(parts.secret, salt=_FLOW)
        self._logins = URLSafeTimedSerializer(parts.secret, salt=_LOGIN)
        self._secure = parts.provider.options.redirect_url.startswith("https:")
        # Browsers take such a name only from this very host by https, so no other host of the domain can put one there
        # (RFC 6265bis 4.1.3.2). On loopback without TLS they would not keep it at all.
        prefix = "__Host-" if self._secure else ""
        self._flow_cookie, self._login_cookie = prefix + _FLOW, prefix + _LOGIN

    def login(self) -> AnyResponse:
        """Away to the provider."""
        url, flow = self._parts.provider.start()
        answer = redirect(url)
        # Lax: it has to come along when the provider sends the browser back.
        answer.set_cookie(
            self._flow_cookie,
            self._flows.dumps(asdict(flow)),
            _FLOW_S,
            secure=self._secure,
            httponly=True,
            samesite="Lax",
        )
        return answer

    def callback(self) -> AnyResponse:
        """Back from the provider."""
        try:
            flow, code = self._answered()
        except AuthenticationFailed as error:
            # Nobody is known yet: counted and summed up, so that a flood of them cannot fill the disk.
            self._parts.audit.count_denial(context.facts("auth.oidc"), error.reason)
            return _turned_away(error)
        try:
            found = recorded_attempt(
                self._parts.audit,
                context.facts("auth.oidc"),
                lambda: self._take(code, flow),
                lambda who: who,
                details=lambda done: {"account": done.account_id},
            )
        except AuthenticationFailed as error:
            return _turned_away(error)
        answer = redirect("/#oidc")
        answer.delete_cookie(self._flow_cookie, secure=self._secure, httponly=True, samesite="Lax")
        answer.set_cookie(
            self._login_cookie,
            self._logins.dumps(asdict(found)),
            _LOGIN_S,
            secure=self._secure,
            httponly=True,
            samesite="Strict",
        )
        return answer

    def tokens(self) -> Response:
        """The tokens of the login that has just come back."""
        found = LoggedIn(**self._opened(self._logins, self._login_cookie, _LOGIN_S))
        address = str(context.current().address)

        def act() -> tuple[str, TokenPair]:
            return self._parts.sessions.start(found.account_id, address)

        _, pair = recorded(
            self._parts.audit,
            context.facts("auth.login"),
            act,
            details=lambda done: {"account": found.account_id, "started_session": done[0]},
        )
        answer = token_answer(pair)
        answer.delete_cookie(self._login_cookie, secure=self._secure, httponly=True, samesite="Strict")
        return answer

    def _answered(self) -> tuple[Flow, str]:
        """The login that this is the provider's answer to, and the code it gave."""
        flow = Flow(**self._opened(self._flows, self._flow_cookie, _FLOW_S))
        given = {name: request.args.getlist(name) for name in ("state", "code", "error")}
        if given["error"] == ["access_denied"]:  # whatever its state: it lets nobody in, and some leave that out
            raise _SaidNo("the provider says access_denied", message=_REFUSED)
        if given["state"] != [flow.state]:
            raise AuthenticationFailed("an answer to another login", message=_REFUSED)
        if len(given["code"]) != 1:
            known = [f" ({error})" for error in given["error"][:1] if error in _ERRORS]
            raise AuthenticationFailed("".join(["an answer of the provider without a code", *known]), message=_REFUSED)
        return flow, given["code"][0]

    def _take(self, code: str, flow: Flow) -> LoggedIn:
        identity = self._parts.provider.finish(code, flow)
        return self._parts.accounts.take(identity.person, identity.roles)

    @staticmethod
    def _opened(serializer: URLSafeTimedSerializer, cookie: str, max_age_s: int) -> dict[str, Any]:
        try:
            value: dict[str, Any] = serializer.loads(request.cookies.get(cookie, ""), max_age=max_age_s)
        except BadData:
            raise AuthenticationFailed("no such login is on its way", message=_REFUSED) from None
        return value


def _turned_away(error: AuthenticationFailed) -> AnyResponse:
    """A person looks at this, not a program: to the page, which says it and offers the login again."""
    context.current().error_code = error.code
    return redirect("/#oidc-denied" if isinstance(error, _SaidNo) else "/#oidc-refused")
