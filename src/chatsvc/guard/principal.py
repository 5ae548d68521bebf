"""Who a verified caller is. Knows nothing about how it was verified."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

ClientAddress = IPv4Address | IPv6Address


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
    """

    account_id: str
    name: str
    roles: tuple[str, ...]
    scopes: frozenset[str]
    sid: str | None = None
    jti: str | None = None
    key_id: str | None = None
    expires_at: int | None = None


@dataclass(frozen=True, slots=True)
class Requirement:
    """What a route asks for: ``public``, ``token`` (any principal) or a scope's name. Every route declares one."""

    kind: str
    scope: str | None = None
    refresh: bool = field(default=False)


PUBLIC = Requirement("public")
ANY_PRINCIPAL = Requirement("token")
REFRESH_TOKEN = Requirement("token", refresh=True)


def scope(name: str) -> Requirement:
    """The requirement of one scope, e.g. ``scope("chat")``."""
    return Requirement("scope", scope=name)
