"""Roles are named sets of scopes; scopes decide. Pure; knows nothing about accounts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

ALL_SCOPES = frozenset({"chat", "metrics", "audit", "admin", "witness"})

DEFAULT_ROLES: Mapping[str, tuple[str, ...]] = {
    "viewer": ("metrics",),
    "user": ("chat",),
    "operator": ("chat", "metrics"),
    "auditor": ("audit",),
    "witness": ("witness",),
    "admin": ("admin", "audit", "chat", "metrics"),
}


class Roles:
    """Which scopes each role has. A role that the configuration has lost gives none."""

    def __init__(self, scopes_by_role: Mapping[str, Iterable[str]] = DEFAULT_ROLES) -> None:
        self._scopes = {role: frozenset(scopes) for role, scopes in scopes_by_role.items()}

    def __contains__(self, role: str) -> bool:
        return role in self._scopes

    def names(self) -> list[str]:
        """Every role there is."""
        return sorted(self._scopes)

    def scopes_of(self, roles: Iterable[str]) -> frozenset[str]:
        """Everything that these roles may do together."""
        empty: frozenset[str] = frozenset()
        return empty.union(*(self._scopes.get(role, empty) for role in roles))


def parse_names(text: str) -> tuple[str, ...]:
    """Names with spaces between, as the database holds them."""
    return tuple(text.split())


def format_names(names: Iterable[str]) -> str:
    """The opposite of :func:`parse_names`; sorted, each once."""
    return " ".join(sorted(set(names)))
