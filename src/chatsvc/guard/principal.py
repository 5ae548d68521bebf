"""Who a verified caller is. Knows nothing about how it was verified."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

ClientAddress = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Limits:
    """What one principal may use."""

    requests_per_minute: int
    tokens_per_day: int
    max_concurrent: int


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What one API key may use, beyond which it also counts for its account. None: no limit of its own."""

    requests_per_minute: int | None = None
    tokens_per_day: int | None = None
    max_concurrent: int | None = None


@dataclass(frozen=True, slots=True)
class Principal:
    """A verified caller.

    Attributes:
        account_id: the account everything is charged to.
        name: the account's name, as given at login.
        roles, scopes: what it may do; scopes decide, roles are shown.
        sid: the token family (session), None for an API key.
        jti: the access token's id, None for an API key.
        key_id: the API key's id, None for a token.
        expires_at: when the credential ends, Unix seconds; None for a key without expiry.
        limits: the account's limits; None only where nothing is limited by principal.
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
    """What a route asks for: ``public``, ``token`` (any principal) or a scope's name. Every route declares one.

    ``other_scope``: one that opens the route as well.
    """

    kind: str
    scope: str | None = None
    other_scope: str | None = None
    refresh: bool = field(default=False)


PUBLIC = Requirement("public")
ANY_PRINCIPAL = Requirement("token")
REFRESH_TOKEN = Requirement("token", refresh=True)


def scope(name: str, *, or_scope: str | None = None) -> Requirement:
    """The requirement of a scope, e.g. ``scope("chat")``, or of one of two."""
    return Requirement("scope", scope=name, other_scope=or_scope)
