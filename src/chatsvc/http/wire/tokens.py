"""Signs the token contents that the guard decided, with Flask-JWT-Extended.

No route uses the extension's decorators: hooks ask the gate, which checks tokens by stricter rules
(:mod:`chatsvc.guard.credentials.tokens`). Knows nothing about sessions or keys.
"""

from __future__ import annotations

from typing import Any

from flask import Flask
from flask_jwt_extended import JWTManager, create_access_token, create_refresh_token

from chatsvc.guard.credentials.tokens import TokenPair, UnsignedToken


def install(app: Flask, algorithm: str) -> None:
    """Register the extension. What it calls an identity is an :class:`UnsignedToken`."""
    app.config.update(JWT_ALGORITHM=algorithm, JWT_TOKEN_LOCATION=["headers"], JWT_COOKIE_CSRF_PROTECT=False)
    manager = JWTManager(app)
    manager.user_identity_loader(lambda token: token.payload["sub"])
    manager.encode_key_loader(lambda token: token.key.private)


def signed_pair(pair: TokenPair) -> dict[str, Any]:
    """The answer on the wire (RFC 6749 5.1)."""
    return {
        "access_token": sign(pair.access),
        "refresh_token": sign(pair.refresh),
        "token_type": "Bearer",
        "expires_in": pair.expires_in,
    }


def sign(token: UnsignedToken) -> str:
    """The token's text. The payload replaces whatever the extension fills in by itself."""
    create = create_access_token if token.kind == "access" else create_refresh_token
    text: str = create(token, expires_delta=False, additional_claims=token.payload, additional_headers=token.header)
    return text
