"""Administration: accounts, keys, sessions, limits. Every act is audited with what was before and after.

All of it needs scope ``admin``; the same can be done by command. Knows nothing about tables.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from flask import Blueprint, Response, jsonify, request
from pydantic import Field

from chatsvc.audit.log import AuditLog
from chatsvc.engine.web_side.client import EngineClient
from chatsvc.guard.accounts.accounts import AccountUpdate
from chatsvc.guard.accounts.changes import Change
from chatsvc.guard.assembly import Guard
from chatsvc.guard.credentials.api_keys import NewKey
from chatsvc.guard.gate import GateOptions
from chatsvc.guard.principal import scope
from chatsvc.http.api.auth import recorded
from chatsvc.http.wire import arguments, context
from chatsvc.http.wire.routing import requires
from chatsvc.http.wire.schema import Body, Text, parse_json, read_body

_ADMIN = requires(scope("admin"))
_DAY_S = 86_400

Limit = Annotated[int, Field(ge=1, le=2**31 - 1)]
TokenLimit = Annotated[int, Field(ge=1, le=2**62)]
Scope = Literal["chat", "metrics", "audit", "admin", "witness"]
# What the document says of rules that guard/ holds: names of accounts and keys, lengths of passwords.
AccountName = Annotated[Text, Field(json_schema_extra={"pattern": r"^[\p{L}\p{N}_.@+-]{1,64}$"})]
KeyName = Annotated[Text, Field(json_schema_extra={"pattern": r"^[\p{L}\p{M}\p{N}\p{P}\p{S} ]{1,128}$"})]
NewPassword = Annotated[Text, Field(json_schema_extra={"minLength": 15, "maxLength": 128})]


RoleNames = Annotated[list[Text], Field(fail_fast=True)]


class AccountBody(Body):
    """``POST /admin/accounts``."""

    name: AccountName
    password: NewPassword
    roles: RoleNames = Field(default_factory=list)


class AccountPatchBody(Body):
    """``PATCH /admin/accounts/{name}``: what is left out stays."""

    roles: RoleNames | None = None
    disabled: bool | None = None
    password: NewPassword | None = None


class LimitsBody(Body):
    """``PUT /admin/limits/{name}``: what is left out or null goes back to the role's or the default."""

    requests_per_minute: Limit | None = None
    tokens_per_day: TokenLimit | None = None
    max_concurrent: Limit | None = None


class KeyLimitsBody(LimitsBody):
    """``PATCH /admin/keys/{id}``: what is left out stays, null goes away. The days count from now."""

    expires_days: Annotated[float, Field(gt=0, le=36_500, strict=False)] | None = None

    def wanted(self) -> dict[str, float | None]:
        """The limits that were named, as the guard knows them."""
        named: dict[str, float | None] = self.model_dump(exclude_unset=True)
        if "expires_days" in named:
            days = named.pop("expires_days")
            named["expires_at"] = None if days is None else time.time() + days * _DAY_S
        return named


class KeyBody(KeyLimitsBody):
    """``POST /admin/keys``."""

    account: Text
    name: KeyName
    scopes: Annotated[list[Scope], Field(min_length=1, fail_fast=True)]


class RotateBody(Body):
    """``POST /admin/keys/{id}/rotate``: how long the old secret works on."""

    grace_s: Annotated[int, Field(ge=0, le=90 * _DAY_S)] = _DAY_S


@dataclass(frozen=True, slots=True)
class AdminParts:
    """Everyone these routes ask."""

    guard: Guard
    audit: AuditLog
    limits: GateOptions
    engine: EngineClient


def blueprint(parts: AdminParts) -> Blueprint:
    """The routes."""
    routes = Blueprint("admin", __name__, url_prefix="/admin")
    views = _Views(parts)
    for method, path, view in (
        ("GET", "/accounts", views.accounts),
        ("POST", "/accounts", views.add_account),
        ("GET", "/accounts/<string(maxlength=64):name>", views.account),
        ("PATCH", "/accounts/<string(maxlength=64):name>", views.change_account),
        ("DELETE", "/accounts/<string(maxlength=64):name>", views.remove_account),
        ("GET", "/limits", views.limits),
        ("PUT", "/limits/<string(maxlength=64):name>", views.set_limits),
        ("GET", "/keys", views.keys),
        ("POST", "/keys", views.create_key),
        ("PATCH", "/keys/<string(maxlength=64):key_id>", views.change_key),
        ("POST", "/keys/<string(maxlength=64):key_id>/rotate", views.rotate_key),
        ("DELETE", "/keys/<string(maxlength=64):key_id>", views.revoke_key),
        ("POST", "/signing-keys/rotate", views.rotate_signing_key),
        ("GET", "/model", views.model),
        ("GET", "/sessions", views.sessions),
        ("DELETE", "/sessions/<string(maxlength=64):sid>", views.end_session),
    ):
        routes.add_url_rule(path, view.__name__, _ADMIN(view), methods=[method])
    return routes


class _Views:
    """The views; methods, so that they share their parts without globals."""

    def __init__(self, parts: AdminParts) -> None:
        self._guard = parts.guard
        self._audit = parts.audit
        self._limits = parts.limits
        self._engine = parts.engine

    def accounts(self) -> Response:
        """A page of accounts by name; ``after`` names the last one of the page before."""
        after, max_accounts = arguments.text(request, "after") or "", arguments.number(request, "limit", 100, 1, 1000)
        listed = self._guard.accounts.list_accounts(after=after, max_accounts=max_accounts)
        return jsonify({"accounts": [account.as_dict() for account in listed]})

    def account(self, name: str) -> Response:
        """One account."""
        return jsonify(self._guard.accounts.get(name).as_dict())

    def add_account(self) -> Response:
        """Make an account."""
        body = parse_json(request, AccountBody)
        change = self._done("account.create", lambda: self._guard.accounts.add(body.name, body.password, body.roles))
        return _created(change.after)

    def change_account(self, name: str) -> Response:
        """Change roles, password or whether it is disabled, all together or nothing."""
        body = parse_json(request, AccountPatchBody)
        wanted = AccountUpdate(body.roles, body.disabled, body.password)
        change = self._done("account.change", lambda: self._guard.accounts.change(name, wanted))
        return jsonify(change.after)

    def remove_account(self, name: str) -> Response:
        """Remove an account with its sessions, keys and conversations."""
        self._done("account.remove", lambda: self._guard.accounts.remove(name))
        return Response(status=204)

    def limits(self) -> Response:
        """The defaults, those of roles, and every account that has its own."""
        default = self._limits.limits
        own = [account.as_dict() for account in self._guard.accounts.list_with_own_limits()]
        names = ("requests_per_minute", "tokens_per_day", "max_concurrent")
        return jsonify(
            {
                "default": {name: getattr(default, name) for name in names},
                "roles": {role: dict(limits) for role, limits in self._limits.role_limits.items()},
                "accounts": {account["name"]: {name: account[name] for name in names} for account in own},
            }
        )

    def set_limits(self, name: str) -> Response:
        """Set an account's own limits."""
        body = parse_json(request, LimitsBody)
        change = self._done("account.limits", lambda: self._guard.accounts.set_limits(name, body.model_dump()))
        return jsonify(change.after)

    def keys(self) -> Response:
        """Every API key without its secret, or those of ``account``."""
        listed = self._guard.api_keys.list_keys(arguments.text(request, "account"))
        return jsonify({"keys": [key.as_dict() for key in listed]})

    def create_key(self) -> Response:
        """Make an API key; the answer is the only place that shows it."""
        body = parse_json(request, KeyBody)
        expires_at = time.time() + body.expires_days * _DAY_S if body.expires_days is not None else None
        new = NewKey(
            account=body.account,
            name=body.name,
            scopes=body.scopes,
            expires_at=expires_at,
            requests_per_minute=body.requests_per_minute,
            tokens_per_day=body.tokens_per_day,
            max_concurrent=body.max_concurrent,
        )
        text, change = self._done_with_key("key.create", lambda: self._guard.api_keys.create(new))
        return _created({"key": text, **(change.after or {})})

    def change_key(self, key_id: str) -> Response:
        """Change a key's own limits; its secret stays."""
        wanted = parse_json(request, KeyLimitsBody).wanted()
        return jsonify(self._done("key.limits", lambda: self._guard.api_keys.set_limits(key_id, wanted)).after)

    def rotate_key(self, key_id: str) -> Response:
        """Give a key a new secret; the old one works on for the grace."""
        grace_s = parse_json(request, RotateBody).grace_s if read_body(request) else RotateBody().grace_s
        text, change = self._done_with_key("key.rotate", lambda: self._guard.api_keys.rotate(key_id, grace_s=grace_s))
        return jsonify({"key": text, **(change.after or {})})

    def revoke_key(self, key_id: str) -> Response:
        """End a key; answers that run with it end too."""
        self._done("key.revoke", lambda: self._guard.api_keys.revoke(key_id))
        return Response(status=204)

    def rotate_signing_key(self) -> Response:
        """Sign tokens with a new key from now on; nobody is logged out."""
        change = self._done("signing_key.rotate", lambda: Change(None, {"kid": self._guard.rotate_signing_key()}))
        return _created(change.after)

    def model(self) -> Response:
        """What is being served, and how the engine is; another model is put in by `chatsvc model activate`."""
        status = self._engine.status()
        card = self._engine.card() if status.ready else None
        shown = ("name", "digest", "revision", "created", "context_length", "runner")
        return jsonify(
            {
                "model": {name: getattr(card, name) for name in shown} if card else None,
                "engine": {"ready": status.ready, "reason": status.reason, "draining": status.draining},
                "sequences": {"running": status.num_running, "waiting": status.num_waiting, "max": status.max_num_seqs},
            }
        )

    def sessions(self) -> Response:
        """Who is in, or the sessions of ``account``."""
        listed = self._guard.sessions.list_sessions(arguments.text(request, "account"))
        return jsonify({"sessions": [session.as_dict() for session in listed]})

    def end_session(self, sid: str) -> Response:
        """End a session and everything that runs in it."""
        self._done("session.end", lambda: self._guard.sessions.end(sid, "admin"))
        return Response(status=204)

    def _done(self, action: str, act: Callable[[], Change]) -> Change:
        return recorded(self._audit, context.facts(f"admin.{action}"), act, details=Change.as_details)

    def _done_with_key(self, action: str, act: Callable[[], tuple[str, Change]]) -> tuple[str, Change]:
        facts = context.facts(f"admin.{action}")
        return recorded(self._audit, facts, act, details=lambda done: done[1].as_details())


def _created(value: dict[str, Any] | None) -> Response:
    answer = jsonify(value)
    answer.status_code = 201
    return answer
