"""Defines the contents of our JSON Web Tokens, and checks them. Knows nothing about sessions, accounts or Flask.

Flask-JWT-Extended signs the contents, in :mod:`chatsvc.http.wire.tokens`. A check takes these steps. PyJWT, which does
the third, by itself accepts tokens without ``exp``, ``jti`` or ``type``, with any ``typ``, and valid for centuries:

1. Shape: three non-empty parts of base64url without padding, at most 4 KiB. Nothing else is read before this.
2. Header: exactly ``alg``, ``kid`` and ``typ`` (RFC 7515 4.1). ``alg`` is the configured algorithm, ``typ`` the wanted
   kind (RFC 9068 2.1) and ``kid`` a key of the ring. So ``crit``, ``jwk``, ``jku`` and ``x5u`` are never followed.
3. Signature, ``exp``, ``nbf``, ``iat``, ``iss``, ``aud``: PyJWT, with that one key and algorithm (RFC 8725 3.1).
4. Claims: all of ``iss sub aud iat nbf exp jti sid type`` with their exact types; ``type`` is the wanted kind;
   ``exp - iat`` is above 0 and at most the configured lifetime.

Every failure is :class:`AuthenticationFailed` with one public message; its reason goes to the log only.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jwt

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
    """What all tokens of this installation have in common. Times are in seconds."""

    issuer: str = "chatsvc"
    audience: str = "chatsvc"
    access_lifetime_s: int = 600
    refresh_idle_s: int = 86_400
    leeway_s: int = 30

    def lifetime_s(self, kind: Kind) -> int:
        """The longest lifetime of a token of that kind, in seconds."""
        return self.access_lifetime_s if kind == "access" else self.refresh_idle_s


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims by which tokens differ. ``sub`` is the account's id, ``sid`` the session's; times are Unix seconds."""

    sub: str
    sid: str
    jti: str
    iat: int
    exp: int


@dataclass(frozen=True, slots=True)
class UnsignedToken:
    """All that a token will hold, and the key to sign it with."""

    kind: Kind
    header: dict[str, str]
    payload: dict[str, str | int]
    key: SigningKey


@dataclass(frozen=True, slots=True)
class TokenPair:
    """What a login or a refresh gives; ``expires_in`` is the access token's lifetime in seconds."""

    access: UnsignedToken
    refresh: UnsignedToken
    expires_in: int


class Tokens:
    """Fills in and checks tokens.

    Args:
        ring: the keys, and with them the one algorithm.
        options: what every token has in common.
        clock: Unix seconds, for step 4. PyJWT compares with the system clock in step 3.
    """

    def __init__(self, ring: KeyRing, options: TokenOptions, *, clock: Callable[[], float] = time.time) -> None:
        self.ring = ring
        self.options = options
        self._clock = clock

    def unsigned(self, kind: Kind, claims: Claims) -> UnsignedToken:
        """The contents of a token with these claims. The same claims and key always give the same token."""
        key = self.ring.current()
        payload: dict[str, str | int] = {
            "iss": self.options.issuer,
            "sub": claims.sub,
            "aud": self.options.audience,
            "iat": claims.iat,
            "nbf": claims.iat,
            "exp": claims.exp,
            "jti": claims.jti,
            "sid": claims.sid,
            "type": kind,
        }
        return UnsignedToken(kind, {"alg": self.ring.algorithm, "kid": key.kid, "typ": _TYP[kind]}, payload, key)

    def check(self, token: str, kind: Kind) -> Claims:
        """The claims of a good token of that kind.

        Raises:
            AuthenticationFailed: for any flaw.
        """
        # (1) shape
        if len(token) > _MAX_TOKEN_LENGTH or not _SHAPE.fullmatch(token):
            raise AuthenticationFailed("malformed token")
        # (2) header
        key = self._key_named(token, kind)
        # (3) signature and registered claims
        try:
            payload = jwt.decode(
                token,
                key.public,
                algorithms=[self.ring.algorithm],
                audience=self.options.audience,
                issuer=self.options.issuer,
                leeway=self.options.leeway_s,
            )
        # For absurd input, errors of PyJWT's JSON parser and its arithmetic pass through it unchanged.
        except (jwt.PyJWTError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
            raise AuthenticationFailed(f"token refused: {type(error).__name__}") from None
        # (4) claims
        return self._checked_claims(payload, kind)

    def _key_named(self, token: str, kind: Kind) -> SigningKey:
        """Check the header; the key that it names."""
        try:
            header = json.loads(_decode_part(token.partition(".")[0]))
        except (ValueError, RecursionError):
            raise AuthenticationFailed("malformed header") from None
        if not isinstance(header, dict) or set(header) != {"alg", "kid", "typ"}:
            raise AuthenticationFailed("unexpected header parameters")
        if header["alg"] != self.ring.algorithm or header["typ"] != _TYP[kind]:
            raise AuthenticationFailed("wrong algorithm or kind of token")
        key = self.ring.find(header["kid"]) if isinstance(header["kid"], str) else None
        if key is None:
            raise AuthenticationFailed("unknown signing key")
        return key

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


def _decode_part(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def unverified_sid(token: str) -> str | None:
    """The session id in a token, unverified: lets an operator end the session of a token that was found somewhere."""
    try:
        unverified_claims = jwt.decode(token, options={"verify_signature": False})
    except jwt.PyJWTError:
        return None
    sid = unverified_claims.get("sid")
    return sid if isinstance(sid, str) else None
