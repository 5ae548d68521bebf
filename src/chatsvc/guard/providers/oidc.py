"""Logins and bearer tokens of an OpenID provider. Knows the provider's protocol, not our own routes.

People log in on a page by authorization code with PKCE (OpenID Connect Core 3.1, RFC 7636):

1. :meth:`OidcProvider.start` makes a new state, nonce and code verifier; the browser brings them back in a signed
   cookie.
2. :meth:`OidcProvider.finish` exchanges code and verifier for an ID token at the provider.
3. The ID token is checked: signature by a published key with a public-key algorithm, ``iss``, ``aud``, ``azp``,
   ``exp``, ``iat``, ``nonce``, ``sub``.

Tools send the provider's access tokens: :meth:`OidcProvider.check_bearer` makes the same checks, with an audience of
its own and without a nonce. That audience must not be the client id, or an ID token would pass as an access token.

``iss`` and ``sub`` together identify a person (Core 5.7); the name is only shown. While the provider does not answer,
one caller at a time waits for it; the others are refused at once.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from authlib.integrations.base_client import OAuthError
from authlib.integrations.requests_client import OAuth2Session
from cryptography.exceptions import UnsupportedAlgorithm
from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet

from chatsvc.errors import AuthenticationFailed, IdentityUnavailable, OperatorError
from chatsvc.guard.accounts.external import BearerAccount, ExternalAccounts, Person, bounded
from chatsvc.guard.address import LOOPBACK_HOSTS
from chatsvc.guard.providers.claims import claim_at, groups_in, unverified_issuer
from chatsvc.guard.providers.jwks import usable_keys
from chatsvc.store.breaker import Breaker

# Public-key signatures only: anyone who can verify a shared-secret signature can also forge one.
_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519")
_METADATA_FOR_S = 3600.0
_KEYS_FOR_S = 3600.0
_KEYS_AGAIN_AFTER_S = 10.0
_LEEWAY_S = 30
# How long a caller waits while another one fetches the same; shorter than a time-out that trips the breaker.
_WAIT_FOR_ANOTHER_S = 0.9
_MAX_TOKEN_LENGTH = 16_384


@dataclass(frozen=True, slots=True)
class OidcOptions:
    """The client's registration at the provider.

    Attributes:
        issuer, client_id, client_secret, redirect_url, scopes: as registered; no secret: a public client.
        name_claim: becomes the account's name; may be a path, see :func:`chatsvc.guard.providers.claims.claim_at`.
        groups_claim: holds the groups; may be a path too.
        roles: role by group.
        api_audience: the audience of tools' access tokens; empty: they are not accepted.
        ca_file: certificates to verify the provider with; None: the system's.
        timeout_s: for each answer of the provider.
    """

    issuer: str
    client_id: str
    redirect_url: str
    client_secret: str = field(default="", repr=False)
    scopes: Sequence[str] = ("openid", "profile")
    name_claim: str = "preferred_username"
    groups_claim: str = "groups"
    roles: Mapping[str, str] = field(default_factory=dict)
    api_audience: str = ""
    ca_file: Path | None = None
    timeout_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Flow:
    """A login in progress at the provider."""

    state: str
    nonce: str
    verifier: str


@dataclass(frozen=True, slots=True)
class Identity:
    """A person from a verified token. ``name`` is None if its claim is no string; ``expires_at`` is in Unix seconds."""

    issuer: str
    subject: str
    name: str | None
    roles: tuple[str, ...]
    expires_at: int

    @property
    def person(self) -> Person:
        """The person as the owner of an account."""
        return Person("oidc", bounded(self.issuer), bounded(self.subject), self.name)


class OidcProvider:
    """A client of one provider; caches its metadata and keys for an hour."""

    def __init__(self, options: OidcOptions, *, clock: Callable[[], float] = time.time) -> None:
        if options.api_audience == options.client_id:
            raise OperatorError("oidc.api_audience must not be oidc.client_id: an ID token is no access token.")
        if not _is_safe(options.issuer):
            raise OperatorError("oidc.issuer must be https://…: it decides who is logged in.")
        self.options = options
        self._clock = clock
        self._breaker = Breaker(options.timeout_s, refusal=IdentityUnavailable)
        self._lock = threading.Lock()
        # Monotonic seconds, because the system clock may be set.
        self._metadata: dict[str, Any] = {}
        self._metadata_at = float("-inf")
        self._keys = KeySet([])
        self._keys_at = float("-inf")

    def start(self) -> tuple[str, Flow]:
        """Step 1: the URL to redirect the browser to, and the flow to pass to :meth:`finish`.

        Raises:
            IdentityUnavailable: the provider cannot be reached.
        """
        flow = Flow(secrets.token_urlsafe(32), secrets.token_urlsafe(32), secrets.token_urlsafe(64))
        with self._client() as client:
            url, _ = client.create_authorization_url(
                self._endpoint("authorization_endpoint"), flow.state, flow.verifier, nonce=flow.nonce
            )
        return str(url), flow

    def finish(self, code: str, flow: Flow) -> Identity:
        """Steps 2 and 3.

        Raises:
            AuthenticationFailed: the provider refuses the code, or its ID token has a flaw.
            IdentityUnavailable: the provider cannot be reached.
        """
        url = self._endpoint("token_endpoint")
        try:
            with self._client() as client, self._breaker.watch(requests.RequestException):
                answer = client.fetch_token(
                    url,
                    code=code,
                    code_verifier=flow.verifier,
                    timeout=self.options.timeout_s,
                    verify=self._verify,  # not set on the session: there the environment's REQUESTS_CA_BUNDLE wins
                )
        except OAuthError as error:
            raise AuthenticationFailed(f"the provider refuses the code: {error.error}") from None
        except (OSError, ValueError, TypeError) as error:  # OSError: every error of requests, or a missing ca_file
            raise IdentityUnavailable from error
        token = answer.get("id_token") if isinstance(answer, dict) else None
        if not isinstance(token, str):
            raise AuthenticationFailed("the provider gave no ID token")
        claims = self._checked(token, self.options.client_id)
        if claims.get("nonce") != flow.nonce or claims.get("azp", self.options.client_id) != self.options.client_id:
            raise AuthenticationFailed("ID token of another login")
        return self._identity(claims)

    def check_bearer(self, token: str) -> Identity:
        """The person whom a tool's access token is for.

        Raises:
            AuthenticationFailed: the token is not the provider's, not for us, or has a flaw.
            IdentityUnavailable: the provider's keys cannot be fetched.
        """
        if not self.options.api_audience:
            raise AuthenticationFailed("oidc.api_audience is not set, so bearers of the provider are refused")
        # Keys are not fetched for a token that does not even claim to be the provider's.
        if unverified_issuer(token, _MAX_TOKEN_LENGTH) != self.options.issuer:
            raise AuthenticationFailed("token of an unknown issuer")
        return self._identity(self._checked(token, self.options.api_audience))

    def _checked(self, token: str, audience: str) -> dict[str, Any]:
        if len(token) > _MAX_TOKEN_LENGTH:
            raise AuthenticationFailed("malformed token of the provider")
        rules = jwt.JWTClaimsRegistry(
            now=int(self._clock()),
            leeway=_LEEWAY_S,
            iss={"essential": True, "value": self.options.issuer},
            aud={"essential": True, "value": audience},
            sub={"essential": True},
            exp={"essential": True},
            iat={"essential": True},
        )
        try:
            claims = self._decoded(token).claims
            rules.validate(claims)
        except (JoseError, UnsupportedAlgorithm, ValueError, TypeError, ArithmeticError, RecursionError) as error:
            raise AuthenticationFailed(f"token of the provider refused: {type(error).__name__}") from None
        return dict(claims)

    def _decoded(self, token: str) -> jwt.Token:
        """Decode; for an unknown key, fetch the keys again (at most every 10 s): the provider may have a new one."""
        try:
            return jwt.decode(token, self._key_set(_KEYS_FOR_S), algorithms=_ALGORITHMS)
        except InvalidKeyIdError:
            return jwt.decode(token, self._key_set(_KEYS_AGAIN_AFTER_S), algorithms=_ALGORITHMS)

    def _identity(self, claims: Mapping[str, Any]) -> Identity:
        subject, name = claims["sub"], claim_at(claims, self.options.name_claim)
        if not isinstance(subject, str) or not subject:
            raise AuthenticationFailed("the claim sub of the provider's token is no string")
        groups = groups_in(claim_at(claims, self.options.groups_claim))
        roles = tuple(self.options.roles[group] for group in groups if group in self.options.roles)
        shown_name = name if isinstance(name, str) else None
        return Identity(self.options.issuer, subject, shown_name, roles, int(claims["exp"]))

    def _key_set(self, at_most_s: float) -> KeySet:
        if time.monotonic() - self._keys_at >= at_most_s:
            url = self._endpoint("jwks_uri")
            with self._fetching():
                if time.monotonic() - self._keys_at >= at_most_s:  # no other caller has fetched them meanwhile
                    self._keys = usable_keys(self._get(url), _ALGORITHMS)
                    self._keys_at = time.monotonic()
        return self._keys

    def _endpoint(self, name: str) -> str:
        if time.monotonic() - self._metadata_at >= _METADATA_FOR_S:
            with self._fetching():
                if time.monotonic() - self._metadata_at >= _METADATA_FOR_S:
                    found = self._get(self.options.issuer.rstrip("/") + "/.well-known/openid-configuration")
                    if found.get("issuer") != self.options.issuer:  # OpenID Connect Discovery 4.3
                        raise IdentityUnavailable("The identity provider's metadata names another issuer.")
                    self._metadata, self._metadata_at = found, time.monotonic()
        url = self._metadata.get(name)
        if not isinstance(url, str) or not _is_safe(url):
            raise IdentityUnavailable(f"The identity provider publishes no usable {name}.")
        return url

    @contextmanager
    def _fetching(self) -> Iterator[None]:
        """One caller fetches; others wait briefly for its result. Cached values are read without this.

        Raises:
            IdentityUnavailable: the provider does not answer, or the other caller has no answer yet.
        """
        with self._breaker.watch(IdentityUnavailable):
            if not self._lock.acquire(timeout=_WAIT_FOR_ANOTHER_S):
                raise IdentityUnavailable
            try:
                yield
            finally:
                self._lock.release()

    def _get(self, url: str) -> dict[str, Any]:
        try:
            answer = requests.get(url, timeout=self.options.timeout_s, allow_redirects=False, verify=self._verify)
            answer.raise_for_status()
            value = answer.json()
        except (OSError, ValueError, RecursionError) as error:  # OSError: as in finish()
            raise IdentityUnavailable from error
        if not isinstance(value, dict):
            raise IdentityUnavailable
        return value

    @property
    def _verify(self) -> bool | str:
        return str(self.options.ca_file) if self.options.ca_file is not None else True

    def _client(self) -> Any:
        return OAuth2Session(
            self.options.client_id,
            self.options.client_secret or None,
            scope=" ".join(self.options.scopes),
            redirect_uri=self.options.redirect_url,
            code_challenge_method="S256",
            token_endpoint_auth_method="client_secret_basic" if self.options.client_secret else "none",
        )


def _is_safe(url: str) -> bool:
    """Whether a URL's answers can be trusted: https, or this machine."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme == "https" or parts.hostname in LOOPBACK_HOSTS


class OidcBearer:
    """Maps a tool's access token of the provider to its account."""

    def __init__(self, provider: OidcProvider, accounts: ExternalAccounts) -> None:
        self._provider = provider
        self._accounts = accounts

    def check_bearer(self, token: str) -> BearerAccount:
        """See :meth:`chatsvc.guard.accounts.external.TrustedIssuer.check_bearer`."""
        identity = self._provider.check_bearer(token)
        found = self._accounts.find_or_create(identity.person, identity.roles)
        return BearerAccount(found.account_id, identity.expires_at)
