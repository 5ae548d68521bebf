"""Roles: named sets of scopes. Pure; knows nothing about accounts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from chatsvc.guard.principal import Scope

DEFAULT_ROLES: Mapping[str, tuple[Scope, ...]] = {
    "viewer": ("metrics",),
    "user": ("chat",),
    "operator": ("chat", "metrics"),
    "auditor": ("audit",),
    "witness": ("witness",),
    "admin": ("admin", "audit", "chat", "metrics"),
}


class Roles:
    """The scopes of each role. A role that is no longer configured has none."""

    def __init__(self, scopes_by_role: Mapping[str, Iterable[str]] = DEFAULT_ROLES) -> None:
        self._scopes = {role: frozenset(scopes) for role, scopes in scopes_by_role.items()}

    def __contains__(self, role: str) -> bool:
        return role in self._scopes

    def names(self) -> list[str]:
        """The configured roles, sorted."""
        return sorted(self._scopes)

    def scopes_of(self, roles: Iterable[str]) -> frozenset[str]:
        """The union of these roles' scopes."""
        empty: frozenset[str] = frozenset()
        return empty.union(*(self._scopes.get(role, empty) for role in roles))


def parse_names(text: str) -> tuple[str, ...]:
    """Role or scope names from their stored form, separated by spaces."""
    return tuple(text.split())


def format_names(names: Iterable[str]) -> str:
    """The stored form that :func:`parse_names` reads: sorted, without duplicates."""
    return " ".join(sorted(set(names)))
