"""Who a verified caller is, which scopes there are, and what a route requires. Knows nothing about verification."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Literal, get_args

ClientAddress = IPv4Address | IPv6Address

Scope = Literal["chat", "metrics", "audit", "admin", "witness"]
"""A permission. This is the only list of them."""

ALL_SCOPES = frozenset[Scope](get_args(Scope))


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one account; ``tokens_per_day`` counts prompt and completion tokens of a UTC day."""

    requests_per_minute: int
    tokens_per_day: int
    max_concurrent: int


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """An API key's own limits, besides those of its account. None: no limit of its own."""

    requests_per_minute: int | None = None
    tokens_per_day: int | None = None
    max_concurrent: int | None = None


@dataclass(frozen=True, slots=True)
class Principal:
    """A verified caller.

    Attributes:
        account_id: the account everything is charged to.
        name: the account's name.
        roles, scopes: scopes decide what it may do; roles are only shown.
        sid: the session; None for an API key or another issuer's token.
        jti: the access token's id; None for an API key or another issuer's token.
        key_id: the API key's id; None for a token.
        expires_at: when the credential expires, Unix seconds; None for a key without expiry.
        limits: the account's limits; None: the configured defaults.
        key_limits: the key's own limits.
    """

    account_id: str
    name: str
    roles: tuple[str, ...]
    scopes: frozenset[str]
    sid: str | None = None
    jti: str | None = None
    key_id: str | None = None
    expires_at: int | None = None
    limits: Limits | None = None
    key_limits: KeyLimits = field(default_factory=KeyLimits)


@dataclass(frozen=True, slots=True)
class Requirement:
    """What a route requires; every route declares one.

    Attributes:
        kind: ``public``, ``token`` (any principal) or ``scope``.
        scope: the scope of a route of kind ``scope``.
        other_scope: a second scope that opens the route as well.
        refresh: the token must be a refresh token.
    """

    kind: Literal["public", "token", "scope"]
    scope: Scope | None = None
    other_scope: Scope | None = None
    refresh: bool = False


PUBLIC = Requirement("public")
ANY_PRINCIPAL = Requirement("token")
REFRESH_TOKEN = Requirement("token", refresh=True)


def scope(name: Scope, *, or_scope: Scope | None = None) -> Requirement:
    """The requirement of a scope, such as ``scope("chat")``, or of either of two."""
    return Requirement("scope", scope=name, other_scope=or_scope)
