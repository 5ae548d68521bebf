"""What an administrative act changed, before and after. Knows nothing about where that is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session as StoreSession


@dataclass(frozen=True, slots=True)
class Change:
    """One thing before and after; None where it was not there, or is not there any more."""

    before: dict[str, Any] | None
    after: dict[str, Any] | None

    def as_details(self) -> dict[str, Any]:
        """For an audit record."""
        return {"before": self.before, "after": self.after}


OnChange = Callable[[StoreSession, str, Change], None]
"""Called inside the transaction of an act with its action's name: what it writes is committed with the act."""


def note_nothing(_session: StoreSession, _action: str, _change: Change) -> None:
    """For the web process, which records acts around them."""
