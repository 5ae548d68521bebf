"""Reads claims of an identity provider, leniently: providers differ in how they write groups. Pure."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping


def claim_at(claims: object, path: str) -> object:
    """The claim at a path, or None.

    ``realm_access.roles`` is the claim of exactly that name, else ``roles`` inside ``realm_access``. Parts of a path
    may contain dots themselves (``resource_access.my.client.roles``): the longest existing name is tried first.
    """
    if not path or not isinstance(claims, Mapping):
        return None
    if path in claims:
        return claims[path]
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        inner = claims.get(".".join(parts[:length]))
        if isinstance(inner, Mapping):
            found = claim_at(inner, ".".join(parts[length:]))
            if found is not None:
                return found
    return None


def groups_in(claim: object) -> list[str]:
    """The group names in a claim of any type.

    A string is one group. In a list, strings are groups, and an object is the group in its ``name``. In an object, the
    keys are groups, except those whose value is ``false`` or ``null``. Any other value names no group.
    """
    if isinstance(claim, str):
        return [claim]
    if isinstance(claim, Mapping):
        return [str(key) for key, value in claim.items() if value is not None and value is not False]
    if not isinstance(claim, list):
        return []
    named = [item.get("name") if isinstance(item, Mapping) else item for item in claim]
    return [name for name in named if isinstance(name, str)]


def unverified_issuer(token: str, max_length: int) -> object:
    """The ``iss`` claim of a token, unverified; None if it is no token or is longer than ``max_length``."""
    parts = token.split(".")
    if len(token) > max_length or len(parts) != 3:
        return None
    try:
        unverified_claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        return None
    return unverified_claims.get("iss") if isinstance(unverified_claims, dict) else None
