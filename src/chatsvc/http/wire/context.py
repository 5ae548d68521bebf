"""The current request: its id, its address and, once verified, its principal.

The one place that uses Flask's ``g``. Knows nothing about how these values are determined.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from flask import g, has_request_context, request

from chatsvc.audit.facts import Facts
from chatsvc.guard.principal import ClientAddress, Principal


@dataclass(slots=True)
class CurrentRequest:
    """Filled in by ``http/wire/hooks.py``, step by step; views only read it.

    ``cors_origin`` is the origin of the calling page, if it is listed. ``log`` takes further values for the access
    line, never a prompt, token or password.
    """

    id: str
    started_at: float
    address: ClientAddress | None = None
    principal: Principal | None = None
    error_code: str | None = None
    cors_origin: str | None = None
    log: dict[str, object] = field(default_factory=dict)


def begin(request_id: str, started_at: float) -> CurrentRequest:
    """Start the record of this request."""
    g.chatsvc_request = CurrentRequest(request_id, started_at)
    return current()


def current() -> CurrentRequest:
    """The request being answered."""
    found: CurrentRequest = g.chatsvc_request
    return found


def is_begun() -> bool:
    """False only where Flask failed before the first hook."""
    return has_request_context() and "chatsvc_request" in g


def principal() -> Principal:
    """The verified caller; only for views that require one."""
    found = current().principal
    assert found is not None, "this view does not require a principal"
    return found


def facts(action: str, *, model: str | None = None, attempted_name: str | None = None) -> Facts:
    """The caller, the act and the address, for an audit record."""
    now = current()
    caller = now.principal
    return Facts(
        request_id=now.id,
        action=action,
        actor=caller.account_id if caller else None,
        sid=caller.sid if caller else None,
        jti=caller.jti if caller else None,
        address=str(now.address) if now.address else None,
        method=request.method,
        route=request.url_rule.rule if request.url_rule else None,
        model=model,
        attempted_name=attempted_name,
    )
