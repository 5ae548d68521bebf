"""People and tools that an OpenID provider vouches for. Knows the provider, not HTTP's side of our own routes.

For a page (OpenID Connect Core 3.1, RFC 7636): authorization code with PKCE.

1. :meth:`OidcProvider.start`: a fresh state, nonce and code verifier; the browser carries them back, signed.
2. :meth:`OidcProvider.finish`: the code and the verifier for an ID token at the provider's own endpoint.
3. The ID token: signature by a published key and a pinned kind of algorithm, ``iss``, ``aud``, ``azp``, ``exp``,
   ``iat``, ``nonce``, ``sub``.

For a tool: :meth:`OidcProvider.check_bearer`, the same checks with an audience of its own and no nonce. That audience
must not be the client's id, or an ID token would do as an access token.

Who somebody is, ``iss`` and ``sub`` say together (Core 5.7); the name is for show. A provider that is silent is waited
for by one caller at a time; the others are refused at once.
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
from chatsvc.guard.providers.claims import claim_at, groups_in, unverified_issuer
from chatsvc.guard.providers.directory import Person, Vouched, VouchedAccounts, bounded
from chatsvc.guard.providers.jwks import usable_keys
from chatsvc.store.breaker import Breaker

# Public-key signatures only: with a shared secret, who can verify could also sign.
_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519")
_METADATA_FOR_S = 3600.0
_KEYS_FOR_S = 3600.0
_KEYS_AGAIN_AFTER_S = 10.0
_LEEWAY_S = 30
# How long a caller waits while another one asks for the same; shorter than what trips the breaker.
_WAIT_FOR_ANOTHER_S = 0.9
_MAX_TOKEN_LENGTH = 16_384
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, slots=True)
class OidcOptions:
    """What was agreed with the provider.

    ``name_claim`` becomes the account's name, which is for show. ``roles`` maps a group in ``groups_claim`` to a role;
    both claims may be paths, see :func:`chatsvc.guard.providers.claims.claim_at`. ``api_audience`` empty: no bearer of
    the provider is taken. ``ca_file``: who signed the provider's certificate; None for the system's list.
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
    """One login on its way through the provider."""

    state: str
    nonce: str
    verifier: str


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom the provider vouches for. ``name`` is None where its claim holds no text."""

    issuer: str
    subject: str
    name: str | None
    roles: tuple[str, ...]
    expires_at: int

    @property
    def person(self) -> Person:
        """Who it is."""
        return Person("oidc", bounded(self.issuer), bounded(self.subject), self.name)


class OidcProvider:
    """Talks to one provider; its metadata and keys are kept for an hour."""

    def __init__(self, options: OidcOptions, *, clock: Callable[[], float] = time.time) -> None:
        if options.api_audience == options.client_id:
            raise OperatorError("oidc.api_audience must not be oidc.client_id: an ID token is no access token.")
        if not _is_safe(options.issuer):
            raise OperatorError("oidc.issuer must be https://…: who is who is decided by what it says.")
        self.options = options
        self._clock = clock
        self._breaker = Breaker(options.timeout_s, refusal=IdentityUnavailable)
        self._lock = threading.Lock()
        # Ages are of the monotonic clock: the other one may be put right.
        self._metadata: dict[str, Any] = {}
        self._metadata_at = float("-inf")
        self._keys = KeySet([])
        self._keys_at = float("-inf")

    def start(self) -> tuple[str, Flow]:
        """(1) The address to send the browser to, and what has to come back with it."""
        flow = Flow(secrets.token_urlsafe(32), secrets.token_urlsafe(32), secrets.token_urlsafe(64))
        with self._client() as client:
            url, _ = client.create_authorization_url(
                self._endpoint("authorization_endpoint"), flow.state, flow.verifier, nonce=flow.nonce
            )
        return str(url), flow

    def finish(self, code: str, flow: Flow) -> Identity:
        """(2) and (3).

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
        except (
            OSError,
            ValueError,
            TypeError,
        ) as error:  # OSError: all of requests' errors, and a ca_file that is not there
            raise IdentityUnavailable from error
        token = answer.get("id_token") if isinstance(answer, dict) else None
        if not isinstance(token, str):
            raise AuthenticationFailed("the provider gave no ID token")
        claims = self._checked(token, self.options.client_id)
        if claims.get("nonce") != flow.nonce or claims.get("azp", self.options.client_id) != self.options.client_id:
            raise AuthenticationFailed("an ID token of another login")
        return self._identity(claims)

    def check_bearer(self, token: str) -> Identity:
        """Whom a tool's token is for.

        Raises:
            AuthenticationFailed: it is not the provider's, not for us, or has a flaw.
            IdentityUnavailable: the provider's keys cannot be had.
        """
        if not self.options.api_audience:
            raise AuthenticationFailed("no bearer of the provider is taken")
        # Nobody is asked for keys because of a token that does not even say that it is the provider's.
        if unverified_issuer(token, _MAX_TOKEN_LENGTH) != self.options.issuer:
            raise AuthenticationFailed("a token of nobody we know")
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
        """A key that is not known may be new: ask for the keys again, though not more often than now and then."""
        try:
            return jwt.decode(token, self._key_set(_KEYS_FOR_S), algorithms=_ALGORITHMS)
        except InvalidKeyIdError:
            return jwt.decode(token, self._key_set(_KEYS_AGAIN_AFTER_S), algorithms=_ALGORITHMS)

    def _identity(self, claims: Mapping[str, Any]) -> Identity:
        subject, name = claims["sub"], claim_at(claims, self.options.name_claim)
        if not isinstance(subject, str) or not subject:
            raise AuthenticationFailed("the claim sub of the provider's token is not a text")
        groups = groups_in(claim_at(claims, self.options.groups_claim))
        roles = tuple(self.options.roles[group] for group in groups if group in self.options.roles)
        shown_name = name if isinstance(name, str) else None
        return Identity(self.options.issuer, subject, shown_name, roles, int(claims["exp"]))

    def _key_set(self, at_most_s: float) -> KeySet:
        if time.monotonic() - self._keys_at >= at_most_s:
            url = self._endpoint("jwks_uri")
            with self._asking():
                if time.monotonic() - self._keys_at >= at_most_s:  # nobody else was quicker
                    self._keys = usable_keys(self._get(url), _ALGORITHMS)
                    self._keys_at = time.monotonic()
        return self._keys

    def _endpoint(self, name: str) -> str:
        if time.monotonic() - self._metadata_at >= _METADATA_FOR_S:
            with self._asking():
                if time.monotonic() - self._metadata_at >= _METADATA_FOR_S:
                    found = self._get(self.options.issuer.rstrip("/") + "/.well-known/openid-configuration")
                    if found.get("issuer") != self.options.issuer:  # OpenID Connect Discovery 4.3
                        raise IdentityUnavailable(
                            "The identity provider calls itself by another name than oidc.issuer."
                        )
                    self._metadata, self._metadata_at = found, time.monotonic()
        url = self._metadata.get(name)
        if not isinstance(url, str) or not _is_safe(url):
            raise IdentityUnavailable(f"The identity provider publishes no {name} that can be believed.")
        return url

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """One caller asks, others wait a moment for its answer; what is kept already is read without this.

        Raises:
            IdentityUnavailable: there is no answer, or the other caller has none yet.
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
        except (OSError, ValueError, RecursionError) as error:  # OSError: as above
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
    """Whether what comes from there can be believed: https, or this machine."""
    try:
        place = urlsplit(url)
    except ValueError:
        return False
    return place.scheme == "https" or place.hostname in _LOOPBACK


class OidcBearer:
    """Takes the provider's tokens for tools, each for its account."""

    def __init__(self, provider: OidcProvider, accounts: VouchedAccounts) -> None:
        self._provider = provider
        self._accounts = accounts

    def check_bearer(self, token: str) -> Vouched:
        """See :class:`chatsvc.guard.providers.directory.TrustedIssuer`."""
        identity = self._provider.check_bearer(token)
        found = self._accounts.take(identity.person, identity.roles)
        return Vouched(found.account_id, identity.expires_at)
