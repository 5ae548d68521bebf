"""Signs and checks JSON Web Tokens. Knows nothing about sessions or who an account is.

Flask-JWT-Extended signs and decodes; by itself it accepts far too much (tokens without ``exp``, ``jti`` or ``type``,
any ``typ``, an ``exp`` in the far future), so its answer is one step among these:

1. Shape: three non-empty parts of base64url without padding, at most 4 KiB. Nothing else is looked at.
2. Header: exactly ``alg``, ``kid``, ``typ``. ``alg`` is the pinned one, ``typ`` the wanted kind (RFC 9068 2.1), and
   ``kid`` names a key of the ring. So no ``crit``, ``jwk``, ``jku`` or ``x5u`` is ever followed.
3. Signature, ``exp``, ``nbf``, ``iat``, ``iss``, ``aud``: Flask-JWT-Extended on PyJWT with that one key and algorithm.
4. Claims: all of ``iss sub aud iat nbf exp jti sid type`` with their exact types; ``type`` is the wanted kind;
   ``exp - iat`` is above 0 and at most the configured lifetime.

Every failure is :class:`AuthenticationFailed` with one public message; the reason is for the log.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import flask_jwt_extended
import jwt
from flask_jwt_extended.exceptions import JWTExtendedException

from chatsvc.errors import AuthenticationFailed
from chatsvc.guard.credentials.keyring import KeyRing, SigningKey

Kind = Literal["access", "refresh"]

_SHAPE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_MAX_TOKEN_LENGTH = 4096
_MAX_ID_LENGTH = 64
_TYP = {"access": "at+jwt", "refresh": "rt+jwt"}
_TEXT_CLAIMS = ("iss", "sub", "aud", "jti", "sid", "type")
_INTEGER_CLAIMS = ("iat", "nbf", "exp")


@dataclass(frozen=True, slots=True)
class TokenOptions:
    """What every token of this installation has in common."""

    issuer: str = "chatsvc"
    audience: str = "chatsvc"
    access_lifetime_s: int = 600
    refresh_idle_s: int = 86_400
    leeway_s: int = 30

    def lifetime_s(self, kind: Kind) -> int:
        """The longest a token of that kind may live."""
        return self.access_lifetime_s if kind == "access" else self.refresh_idle_s


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims of a token that passed every step."""

    sub: str
    sid: str
    jti: str
    iat: int
    exp: int


@dataclass(frozen=True, slots=True)
class TokenPair:
    """What a login or a refresh gives."""

    access_token: str
    refresh_token: str
    expires_in: int

    def as_dict(self) -> dict[str, Any]:
        """The answer on the wire."""
        return {
            "access_token": self.access_token,
            "refresh_token": self.refresh_token,
            "token_type": "Bearer",
            "expires_in": self.expires_in,
        }


@dataclass(frozen=True, slots=True)
class _Signer:
    """What the library is given as an identity: it hands it back to each loader, so one key serves one token."""

    sub: str
    kind: Kind
    key: SigningKey


class Tokens:
    """Signs and checks. Both need the Flask application that :meth:`install` was given to be the current one."""

    def __init__(self, ring: KeyRing, options: TokenOptions, *, clock: Callable[[], float] = time.time) -> None:
        self.ring = ring
        self.options = options
        self._clock = clock

    def install(self, app: Any) -> None:
        """Set the extension up on the application. No route of ours uses its decorators: hooks ask the gate."""
        app.config.update(
            JWT_ALGORITHM=self.ring.algorithm,
            JWT_DECODE_ALGORITHMS=[self.ring.algorithm],
            JWT_DECODE_AUDIENCE=self.options.audience,
            JWT_ENCODE_AUDIENCE=self.options.audience,
            JWT_DECODE_ISSUER=self.options.issuer,
            JWT_ENCODE_ISSUER=self.options.issuer,
            JWT_DECODE_LEEWAY=self.options.leeway_s,
            JWT_TOKEN_LOCATION=["headers"],
            JWT_COOKIE_CSRF_PROTECT=False,
        )
        manager = flask_jwt_extended.JWTManager(app)
        manager.user_identity_loader(lambda signer: signer.sub)
        manager.encode_key_loader(lambda signer: signer.key.private)
        manager.additional_headers_loader(lambda signer: {"kid": signer.key.kid, "typ": _TYP[signer.kind]})
        manager.decode_key_loader(lambda header, _claims: self._public_key(header))

    def sign(self, kind: Kind, claims: Claims) -> str:
        """The token with these claims. The same claims under the same key give the same text."""
        create = flask_jwt_extended.create_access_token if kind == "access" else flask_jwt_extended.create_refresh_token
        token: str = create(
            _Signer(claims.sub, kind, self.ring.current()),
            expires_delta=False,
            additional_claims={
                "iat": claims.iat,
                "nbf": claims.iat,
                "exp": claims.exp,
                "jti": claims.jti,
                "sid": claims.sid,
            },
        )
        return token

    def check(self, token: str, kind: Kind) -> Claims:
        """The claims of a good token of that kind.

        Raises:
            AuthenticationFailed: for any flaw.
        """
        # (1) shape
        if len(token) > _MAX_TOKEN_LENGTH or not _SHAPE.fullmatch(token):
            raise AuthenticationFailed("malformed token")
        # (2) header
        self._check_header(token, kind)
        # (3) signature and registered claims
        try:
            flask_jwt_extended.decode_token(token)
        # PyJWT lets what its JSON parser and its arithmetic raise pass through for absurd input.
        except (jwt.PyJWTError, JWTExtendedException, ValueError, TypeError, ArithmeticError, RecursionError) as error:
            raise AuthenticationFailed(f"token refused: {type(error).__name__}") from None
        # (4) claims: as they were signed, for the library fills in a `type` and a `jti` that are missing
        return self._checked_claims(json.loads(_decode_part(token.split(".")[1])), kind)

    def _check_header(self, token: str, kind: Kind) -> None:
        try:
            header = json.loads(_decode_part(token.partition(".")[0]))
        except (ValueError, RecursionError):
            raise AuthenticationFailed("malformed header") from None
        if not isinstance(header, dict) or set(header) != {"alg", "kid", "typ"}:
            raise AuthenticationFailed("unexpected header parameters")
        if header["alg"] != self.ring.algorithm or header["typ"] != _TYP[kind]:
            raise AuthenticationFailed("wrong algorithm or kind of token")
        if not isinstance(header["kid"], str) or self.ring.find(header["kid"]) is None:
            raise AuthenticationFailed("unknown signing key")

    def _checked_claims(self, claims: dict[str, Any], kind: Kind) -> Claims:
        if not all(isinstance(claims.get(name), str) and claims[name] for name in _TEXT_CLAIMS):
            raise AuthenticationFailed("a text claim is missing or of the wrong type")
        if not all(type(claims.get(name)) is int for name in _INTEGER_CLAIMS):  # bool is an int to isinstance
            raise AuthenticationFailed("a time claim is missing or of the wrong type")
        if any(len(claims[name]) > _MAX_ID_LENGTH for name in ("sub", "jti", "sid")):
            raise AuthenticationFailed("an id is too long")
        if claims["type"] != kind:
            raise AuthenticationFailed("wrong type of token")
        if not 0 < claims["exp"] - claims["iat"] <= self.options.lifetime_s(kind):
            raise AuthenticationFailed("lifetime out of bounds")
        if self._clock() >= claims["exp"] + self.options.leeway_s:
            raise AuthenticationFailed("expired")
        return Claims(claims["sub"], claims["sid"], claims["jti"], claims["iat"], claims["exp"])

    def _public_key(self, header: dict[str, Any]) -> Any:
        key = self.ring.find(header["kid"])
        if key is None:  # dropped between the two looks
            raise JWTExtendedException
        return key.public


def _decode_part(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def unverified_sid(token: str) -> str | None:
    """The session that a token names, unverified: for an operator who wants to end what a found token belongs to."""
    try:
        unverified_claims = jwt.decode(token, options={"verify_signature": False})
    except jwt.PyJWTError:
        return None
    sid = unverified_claims.get("sid")
    return sid if isinstance(sid, str) else None
