"""Accounts and their limits. Knows nothing about tables."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, TypedDict

from flask import Response, jsonify, request
from pydantic import Field

from chatsvc.audit.log import AuditLog
from chatsvc.guard.accounts.accounts import AccountUpdate
from chatsvc.guard.assembly import Guard
from chatsvc.guard.gate import GateOptions
from chatsvc.guard.principal import scope
from chatsvc.http.api.admin.limits import LimitsBody, OwnLimits
from chatsvc.http.api.recording import recorded_change
from chatsvc.http.wire.routing import Operation, like, requires, route
from chatsvc.http.wire.schema import Body, Digits, Query, Text, parse_json, parse_query

_ADMIN = requires(scope("admin"))
_PATH = "/admin/accounts/<string(maxlength=64):name>"
_ALICE = {"name": "alice"}

# The rules for account names and passwords as the OpenAPI document shows them; guard/ enforces them.
AccountName = Annotated[Text, Field(examples=["alice"], json_schema_extra={"pattern": r"^[\p{L}\p{N}_.@+-]{1,64}$"})]
NewPassword = Annotated[
    Text, Field(examples=["correct horse battery staple"], json_schema_extra={"minLength": 15, "maxLength": 128})
]
RoleNames = Annotated[list[Text], Field(fail_fast=True)]


class AccountBody(Body):
    """A new account."""

    name: AccountName
    password: NewPassword
    roles: RoleNames = Field(default_factory=list, examples=[["user"]])


class AccountPatchBody(Body):
    """Changes to an account; fields that are left out stay unchanged."""

    roles: RoleNames | None = Field(None, examples=[["user", "auditor"]])
    disabled: bool | None = None
    password: Annotated[Text, Field(json_schema_extra={"minLength": 15, "maxLength": 128})] | None = None


class AccountsQuery(Query):
    """A page of the list."""

    limit: Annotated[int, Field(ge=1, le=1000, description="Maximum number of items."), Digits] = 100
    after: Text = Field("", description="The last name of the previous page.")


class AccountAnswer(OwnLimits):
    """An account. ``source`` says where it is kept: here, or in a directory."""

    id: Annotated[str, like("0f8b6c1e2d3a4b5c8d9e0f1a2b3c4d5e")]
    name: Annotated[str, like("alice")]
    roles: list[Annotated[str, like("user")]]
    created_at: Annotated[float, like(1_767_225_600.25)]
    disabled: bool
    source: Annotated[str, like("local")]


class AccountPage(TypedDict):
    """Accounts by name."""

    accounts: list[AccountAnswer]


class DefaultLimits(TypedDict):
    """Limits that apply where nothing else is set."""

    requests_per_minute: Annotated[int, like(60)]
    tokens_per_day: Annotated[int, like(200_000)]
    max_concurrent: Annotated[int, like(4)]


class LimitsAnswer(TypedDict):
    """``roles`` and ``accounts`` list only those with limits of their own."""

    default: DefaultLimits
    roles: Annotated[dict[str, dict[str, int]], like({"operator": {"requests_per_minute": 300}})]
    accounts: Annotated[
        dict[str, OwnLimits],
        like({"alice": {"requests_per_minute": 30, "tokens_per_day": 100_000, "max_concurrent": None}}),
    ]


@dataclass(frozen=True, slots=True)
class AccountViews:
    """The views, and what they need."""

    TAG: ClassVar = "admin"

    guard: Guard
    audit: AuditLog
    options: GateOptions

    @route("GET", "/admin/accounts")
    @_ADMIN
    @Operation(query=AccountsQuery, answer=AccountPage)
    def accounts(self) -> dict[str, Any]:
        """List accounts by name."""
        page = parse_query(request, AccountsQuery)
        listed = self.guard.accounts.list_accounts(after=page.after, max_accounts=page.limit)
        return {"accounts": [account.as_dict() for account in listed]}

    @route("GET", _PATH)
    @_ADMIN
    @Operation(answer=AccountAnswer, path=_ALICE)
    def account(self, name: str) -> dict[str, Any]:
        """Read an account."""
        return self.guard.accounts.get(name).as_dict()

    @route("POST", "/admin/accounts")
    @_ADMIN
    @Operation(body=AccountBody, answer=AccountAnswer, status=201, errors=(409,))
    def add_account(self) -> tuple[dict[str, Any], int]:
        """Create an account."""
        body = parse_json(request, AccountBody)
        new = partial(self.guard.accounts.add, body.name, body.password, body.roles)
        return recorded_change(self.audit, "account.create", new), 201

    @route("PATCH", _PATH)
    @_ADMIN
    @Operation(body=AccountPatchBody, answer=AccountAnswer, errors=(409,), path=_ALICE)
    def change_account(self, name: str) -> dict[str, Any]:
        """Change an account's roles or password, or disable it; either all changes are made or none."""
        body = parse_json(request, AccountPatchBody)
        wanted = AccountUpdate(body.roles, body.disabled, body.password)
        return recorded_change(self.audit, "account.change", lambda: self.guard.accounts.change(name, wanted))

    @route("DELETE", _PATH)
    @_ADMIN
    @Operation(status=204, errors=(409,), path=_ALICE)
    def remove_account(self, name: str) -> Response:
        """Remove an account with its sessions, keys and conversations."""
        recorded_change(self.audit, "account.remove", lambda: self.guard.accounts.remove(name))
        return Response(status=204)

    @route("GET", "/admin/limits")
    @_ADMIN
    @Operation(answer=LimitsAnswer)
    def limits(self) -> Response:
        """The default limits, those of roles, and those of accounts."""
        default = self.options.limits
        own = [account.as_dict() for account in self.guard.accounts.list_with_own_limits()]
        names = ("requests_per_minute", "tokens_per_day", "max_concurrent")
        return jsonify(
            {
                "default": {name: getattr(default, name) for name in names},
                "roles": {role: dict(limits) for role, limits in self.options.role_limits.items()},
                "accounts": {account["name"]: {name: account[name] for name in names} for account in own},
            }
        )

    @route("PUT", "/admin/limits/<string(maxlength=64):name>")
    @_ADMIN
    @Operation(body=LimitsBody, answer=AccountAnswer, path=_ALICE)
    def set_limits(self, name: str) -> dict[str, Any]:
        """Set an account's own limits."""
        limits = parse_json(request, LimitsBody).model_dump()
        return recorded_change(self.audit, "account.limits", lambda: self.guard.accounts.set_limits(name, limits))
