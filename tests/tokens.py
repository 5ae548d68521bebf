"""Tokens as PyJWT alone writes them: tests of the guard need neither Flask nor what signs in the web process."""

from __future__ import annotations

from dataclasses import dataclass

import jwt

from chatsvc.guard.credentials.tokens import Claims, Kind, TokenPair, Tokens, UnsignedToken


@dataclass(frozen=True)
class Pair:
    """The two tokens of a login or a refresh."""

    access_token: str
    refresh_token: str
    expires_in: int


def signed(token: UnsignedToken) -> str:
    return jwt.encode(token.payload, token.key.private, token.header["alg"], headers=token.header)


def sign(tokens: Tokens, kind: Kind, claims: Claims) -> str:
    return signed(tokens.unsigned(kind, claims))


def signed_pair(pair: TokenPair) -> Pair:
    return Pair(signed(pair.access), signed(pair.refresh), pair.expires_in)
