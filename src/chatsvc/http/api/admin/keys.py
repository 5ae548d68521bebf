"""API keys, and the keys that sign tokens. Knows nothing about tables."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, TypedDict

from flask import Response, request
from pydantic import Field

from chatsvc.audit.log import AuditLog
from chatsvc.guard.assembly import Guard
from chatsvc.guard.credentials.api_keys import NewKey
from chatsvc.guard.outbox import Change
from chatsvc.guard.principal import Scope, scope
from chatsvc.http.api.admin.limits import LimitsBody, OwnLimits
from chatsvc.http.api.recording import recorded_change, recorded_key
from chatsvc.http.wire.routing import Operation, like, requires, route
from chatsvc.http.wire.schema import Body, Query, Text, parse_json, parse_query, read_body

_ADMIN = requires(scope("admin"))
_PATH = "/admin/keys/<string(maxlength=64):key_id>"
_ID = "7kq2m9xw4t"
_EXAMPLE = {"key_id": _ID}
_DAY_S = 86_400

# The rule as the OpenAPI document shows it; guard/ enforces it.
KeyName = Annotated[
    Text, Field(examples=["report tool"], json_schema_extra={"pattern": r"^[\p{L}\p{M}\p{N}\p{P}\p{S} ]{1,128}$"})
]


class KeyLimitsBody(LimitsBody):
    """Fields that are left out stay unchanged; null removes a limit. Days count from now."""

    expires_days: Annotated[float, Field(gt=0, le=36_500, strict=False)] | None = None

    def wanted(self) -> dict[str, float | None]:
        """The limits that were named, as the guard knows them."""
        named: dict[str, float | None] = self.model_dump(exclude_unset=True)
        if "expires_days" in named:
            named["expires_at"] = _expiry(named.pop("expires_days"))
        return named


class KeyBody(KeyLimitsBody):
    """A new key, and the account it belongs to."""

    account: Text = Field(examples=["alice"])
    name: KeyName
    scopes: Annotated[list[Scope], Field(min_length=1, fail_fast=True, examples=[["chat"]])]


class RotateBody(Body):
    """How many seconds the old secret stays valid."""

    grace_s: Annotated[int, Field(ge=0, le=90 * _DAY_S, examples=[3600])] = _DAY_S


class KeysQuery(Query):
    """Which keys."""

    account: Text | None = Field(None, description="Only those of this account.", examples=["alice"])


class KeyAnswer(OwnLimits):
    """An API key without its secret."""

    id: Annotated[str, like(_ID)]
    account: Annotated[str, like("alice")]
    name: Annotated[str, like("report tool")]
    scopes: list[Annotated[str, like("chat")]]
    created_at: Annotated[float, like(1_767_225_600.25)]
    expires_at: Annotated[float, like(None)] | None
    last_used_at: Annotated[float, like(1_767_225_612.5)] | None
    revoked: bool


class NewKeyAnswer(KeyAnswer):
    """An API key with its secret, which is shown only here."""

    key: Annotated[str, like(f"csk_{_ID}_Zr8t…")]


class KeyList(TypedDict):
    """API keys."""

    keys: list[KeyAnswer]


class SigningKeyAnswer(TypedDict):
    """The name of the key that signs from now on."""

    kid: Annotated[str, like("3f2a9c41")]


@dataclass(frozen=True, slots=True)
class KeyViews:
    """The views, and what they need."""

    TAG: ClassVar = "admin"

    guard: Guard
    audit: AuditLog

    @route("GET", "/admin/keys")
    @_ADMIN
    @Operation(query=KeysQuery, answer=KeyList)
    def keys(self) -> dict[str, Any]:
        """List API keys, without their secrets."""
        listed = self.guard.api_keys.list_keys(parse_query(request, KeysQuery).account)
        return {"keys": [key.as_dict() for key in listed]}

    @route("POST", "/admin/keys")
    @_ADMIN
    @Operation(body=KeyBody, answer=NewKeyAnswer, status=201, errors=(404, 409))
    def create_key(self) -> tuple[dict[str, Any], int]:
        """Create an API key; only this answer shows its secret."""
        body = parse_json(request, KeyBody)
        new = NewKey(**body.model_dump(exclude={"expires_days"}), expires_at=_expiry(body.expires_days))
        return recorded_key(self.audit, "key.create", partial(self.guard.api_keys.create, new)), 201

    @route("PATCH", _PATH)
    @_ADMIN
    @Operation(body=KeyLimitsBody, answer=KeyAnswer, path=_EXAMPLE)
    def change_key(self, key_id: str) -> dict[str, Any]:
        """Change a key's own limits; its secret stays.

        Fields that are left out stay unchanged; null removes a limit.
        """
        wanted = parse_json(request, KeyLimitsBody).wanted()
        return recorded_change(self.audit, "key.limits", lambda: self.guard.api_keys.set_limits(key_id, wanted))

    @route("POST", _PATH + "/rotate")
    @_ADMIN
    @Operation(body=RotateBody, body_required=False, answer=NewKeyAnswer, errors=(409,), path=_EXAMPLE)
    def rotate_key(self, key_id: str) -> dict[str, Any]:
        """Give a key a new secret; the old one stays valid for a day, or as long as the body says."""
        grace_s = parse_json(request, RotateBody).grace_s if read_body(request) else RotateBody().grace_s
        return recorded_key(self.audit, "key.rotate", partial(self.guard.api_keys.rotate, key_id, grace_s=grace_s))

    @route("DELETE", _PATH)
    @_ADMIN
    @Operation(status=204, path=_EXAMPLE)
    def revoke_key(self, key_id: str) -> Response:
        """Revoke a key; running requests that use it end too."""
        recorded_change(self.audit, "key.revoke", lambda: self.guard.api_keys.revoke(key_id))
        return Response(status=204)

    @route("POST", "/admin/signing-keys/rotate")
    @_ADMIN
    @Operation(answer=SigningKeyAnswer, status=201)
    def rotate_signing_key(self) -> tuple[dict[str, Any], int]:
        """Sign tokens with a new key from now on; no session ends."""

        def rotate() -> Change:
            return Change(None, {"kid": self.guard.rotate_signing_key()})

        return recorded_change(self.audit, "signing_key.rotate", rotate), 201


def _expiry(days: float | None) -> float | None:
    return None if days is None else time.time() + days * _DAY_S
