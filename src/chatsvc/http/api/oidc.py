"""Single sign-on with an OpenID provider: the redirect to it, the callback, and the tokens for the chat page.

The browser carries the state of a login in a signed cookie that no script can read, so any replica can continue it.
Tokens are never in an address: the page fetches them with a second signed cookie that lives for a minute. After a
refused login the browser is sent to the page with one of two codes after the ``#``; the page has a sentence for each.
Nothing that the provider says is shown.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from flask import Response, redirect, request
from itsdangerous import BadData, URLSafeTimedSerializer
from pydantic import Field
from werkzeug.wrappers import Response as AnyResponse

from chatsvc.audit.log import AuditLog
from chatsvc.errors import AuthenticationFailed, InvalidRequest
from chatsvc.guard.accounts.external import ExternalAccounts, LoggedIn
from chatsvc.guard.credentials.sessions import Sessions
from chatsvc.guard.credentials.tokens import TokenPair
from chatsvc.guard.principal import PUBLIC
from chatsvc.guard.providers.oidc import Flow, OidcProvider
from chatsvc.http.api.auth import TokenAnswer, token_answer
from chatsvc.http.api.recording import recorded, recorded_attempt
from chatsvc.http.wire import context
from chatsvc.http.wire.routing import Operation, requires, route
from chatsvc.http.wire.schema import Query, Text, parse_query

_FLOW_S, _LOGIN_S = 600, 60
# RFC 6749 4.1.2.1 and OpenID Connect Core 3.1.2.6; no other text from outside gets into the log.
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


class _Denied(AuthenticationFailed):
    """The person, or a rule of the provider, denied the login (RFC 6749 4.1.2.1: access_denied)."""


class CallbackQuery(Query):
    """What the provider sends back through the browser: a code, or an error (RFC 6749 4.1.2)."""

    state: Text | None = Field(None, examples=["af0ifjsldkj"])
    code: Text | None = Field(None, examples=["SplxlOBeZQQYbYS6WxSbIA"])
    error: Text | None = None


class SignedCookie:
    """A signed cookie that no script can read. It holds one value between two requests of a login."""

    def __init__(self, name: str, secret: bytes, max_age_s: int, samesite: str, *, secure: bool) -> None:
        # Browsers accept such a name only from this host over https, so no other host of the domain can set one
        # (RFC 6265bis 4.1.3.2). Without TLS (loopback) they would not store it at all.
        self._name = f"__Host-{name}" if secure else name
        self._serializer = URLSafeTimedSerializer(secret, salt=name)
        self._max_age_s = max_age_s
        self._flags: dict[str, Any] = {"secure": secure, "httponly": True, "samesite": samesite}

    def put(self, answer: AnyResponse, value: dict[str, Any]) -> None:
        """Set the cookie on an answer."""
        answer.set_cookie(self._name, self._serializer.dumps(value), self._max_age_s, **self._flags)

    def delete(self, answer: AnyResponse) -> None:
        """Delete the cookie in the browser."""
        answer.delete_cookie(self._name, **self._flags)

    def value(self) -> dict[str, Any]:
        """The value that the current request sent.

        Raises:
            AuthenticationFailed: no such cookie, or it is forged or too old.
        """
        try:
            value: dict[str, Any] = self._serializer.loads(request.cookies.get(self._name, ""), self._max_age_s)
        except BadData:
            raise AuthenticationFailed("no login in progress", message=_REFUSED) from None
        return value


@dataclass(frozen=True, slots=True)
class OidcViews:
    """The views, and what they need: ``flow`` until the provider answers, ``arrival`` until tokens are fetched."""

    TAG: ClassVar = "session"

    provider: OidcProvider
    accounts: ExternalAccounts
    sessions: Sessions
    audit: AuditLog
    flow: SignedCookie
    arrival: SignedCookie

    @route("GET", "/oidc/login")
    @requires(PUBLIC)
    @Operation(status=302)
    def login(self) -> AnyResponse:
        """Log in at the identity provider, which sends the browser back to `/oidc/callback`."""
        url, flow = self.provider.start()
        answer = redirect(url)
        self.flow.put(answer, asdict(flow))
        return answer

    @route("GET", "/oidc/callback")
    @requires(PUBLIC)
    @Operation(query=CallbackQuery, status=302)
    def callback(self) -> AnyResponse:
        """Callback from the identity provider: redirects to the chat page, which is logged in or says why not."""
        try:
            flow, code = self._answered()
        except AuthenticationFailed as error:
            # No account is known yet: counted, not recorded one by one, so that a flood cannot fill the disk.
            self.audit.count_denial(context.facts("auth.oidc"), error.reason)
            return _turned_away(error)
        try:
            found = recorded_attempt(
                self.audit,
                context.facts("auth.oidc"),
                lambda: self._take(code, flow),
                lambda who: who,
                details=lambda done: {"account": done.account_id},
            )
        except AuthenticationFailed as error:
            return _turned_away(error)
        answer = redirect("/#oidc")
        self.flow.delete(answer)
        self.arrival.put(answer, asdict(found))
        return answer

    @route("POST", "/oidc/tokens")
    @requires(PUBLIC)
    @Operation(answer=TokenAnswer, errors=(401,))
    def tokens(self) -> Response:
        """The tokens of a login at the identity provider, for the chat page: by its cookie, within a minute."""
        found = LoggedIn(**self.arrival.value())
        address = str(context.current().address)

        def act() -> tuple[str, TokenPair]:
            return self.sessions.start(found.account_id, address)

        _, pair = recorded(
            self.audit,
            context.facts("auth.login"),
            act,
            details=lambda done: {"account": found.account_id, "started_session": done[0]},
        )
        answer = token_answer(pair)
        self.arrival.delete(answer)
        return answer

    def _answered(self) -> tuple[Flow, str]:
        """The login in progress and the code that the provider returned for it."""
        flow = Flow(**self.flow.value())
        try:
            given = parse_query(request, CallbackQuery)
        except InvalidRequest as error:
            reason = "the provider's answer has no valid code"
            raise AuthenticationFailed(reason, message=_REFUSED) from error
        if given.error == "access_denied":  # without checking state: it logs nobody in, and some providers omit it
            raise _Denied("the provider says access_denied", message=_REFUSED)
        if given.state != flow.state:
            raise AuthenticationFailed("state mismatch: the answer belongs to another login", message=_REFUSED)
        if given.code is None:
            known = f" ({given.error})" if given.error in _ERRORS else ""
            raise AuthenticationFailed(f"the provider's answer has no code{known}", message=_REFUSED)
        return flow, given.code

    def _take(self, code: str, flow: Flow) -> LoggedIn:
        identity = self.provider.finish(code, flow)
        return self.accounts.find_or_create(identity.person, identity.roles)


def views(
    provider: OidcProvider, accounts: ExternalAccounts, sessions: Sessions, audit: AuditLog, secret: bytes
) -> OidcViews:
    """The views; ``secret`` signs their cookies."""
    secure = provider.options.redirect_url.startswith("https:")
    # Lax: the browser has to send it when the provider sends it back here.
    flow = SignedCookie("chatsvc-oidc-flow", secret, _FLOW_S, "Lax", secure=secure)
    arrival = SignedCookie("chatsvc-oidc-login", secret, _LOGIN_S, "Strict", secure=secure)
    return OidcViews(provider, accounts, sessions, audit, flow, arrival)


def _turned_away(error: AuthenticationFailed) -> AnyResponse:
    """Redirect to the chat page, which shows the reason and offers the login again, for a person."""
    context.current().error_code = error.code
    return redirect("/#oidc-denied" if isinstance(error, _Denied) else "/#oidc-refused")
