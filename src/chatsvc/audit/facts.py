"""What the service tells the audit log about a request and its outcome. The log decides what is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["allowed", "denied", "error", "aborted"]


@dataclass(frozen=True, slots=True)
class Facts:
    """Who asked for what, from where. ``jti`` and ``attempted_name`` are written only as keyed hashes."""

    request_id: str
    action: str
    actor: str | None = None
    sid: str | None = None
    jti: str | None = None
    address: str | None = None
    method: str | None = None
    route: str | None = None
    model: str | None = None
    attempted_name: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """How it ended. ``details`` is for administrative acts (before and after); ``content`` is written by level only."""

    outcome: Outcome
    status: int | None = None
    reason: str | None = None
    num_prompt_tokens: int | None = None
    num_completion_tokens: int | None = None
    content: str | None = None
    details: Mapping[str, object] = field(default_factory=dict)
