"""``chatsvc key``: API keys, and the keys that sign tokens. Knows the guard, not its tables."""

from __future__ import annotations

import time
from collections.abc import Callable

import click

from chatsvc.cli.accounts.open_guard import open_guard
from chatsvc.cli.output import json_option, print_json, print_result, print_table
from chatsvc.guard.credentials.api_keys import NewKey

_DAY_S = 86_400
_STATES = {True: "revoked", False: "valid"}
_WITHOUT = {
    "expiry": "expires_at",
    "requests-per-minute": "requests_per_minute",
    "tokens-per-day": "tokens_per_day",
    "max-concurrent": "max_concurrent",
}
_LIMITS = (
    click.option("--expires-days", type=click.FloatRange(min=0, min_open=True), help="Days from now until it expires."),
    click.option("--requests-per-minute", type=click.IntRange(min=1), help="The key's own limit."),
    click.option("--tokens-per-day", type=click.IntRange(min=1), help="The key's own limit."),
    click.option("--max-concurrent", type=click.IntRange(min=1), help="The key's own limit."),
)


def _limit_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for each limit that a key can have."""
    for option in reversed(_LIMITS):
        function = option(function)
    return function


@click.group("key")
def command() -> None:
    """API keys and signing keys: create, list, change, rotate, revoke."""


@command.command()
@click.option("--name", required=True, help="A name that says what the key is for.")
@click.option("--scope", "scopes", multiple=True, required=True, help="What the key may do; repeatable.")
@click.option("--account", required=True, help="The account that the key belongs to.")
@_limit_options
@json_option
def create(name: str, scopes: tuple[str, ...], account: str, expires_days: float | None, as_json: bool,
           **limits: int | None) -> None:  # fmt: skip
    """Make an API key and print it; it cannot be shown again. Without --expires-days it never expires."""
    expires_at = time.time() + expires_days * _DAY_S if expires_days is not None else None
    with open_guard() as guard:
        text, change = guard.api_keys.create(
            NewKey(account=account, name=name, scopes=scopes, expires_at=expires_at, **limits)
        )
    print_result({"key": text, **(change.after or {})}, text, as_json=as_json)


@command.command("list")
@click.option("--account", help="List only keys of this account.")
@json_option
def list_(account: str | None, as_json: bool) -> None:
    """List API keys, without their secrets."""
    with open_guard() as guard:
        keys = guard.api_keys.list_keys(account)
    if as_json:
        print_json([key.as_dict() for key in keys])
        return
    rows = ((each.id, _STATES[each.revoked], each.account, " ".join(each.scopes), each.name) for each in keys)
    print_table(("ID", "STATE", "ACCOUNT", "SCOPES", "NAME"), rows)


@command.command()
@click.argument("key_id", metavar="ID")
@_limit_options
@click.option("--without", type=click.Choice(list(_WITHOUT)), multiple=True, help="Remove this limit; repeatable.")
@json_option
def change(key_id: str, expires_days: float | None, without: tuple[str, ...], as_json: bool,
           **limits: int | None) -> None:  # fmt: skip
    """Change the limits of an API key from its next request on. A limit that is not named stays as it is."""
    given: dict[str, float | None] = {name: value for name, value in limits.items() if value is not None}
    if expires_days is not None:
        given["expires_at"] = time.time() + expires_days * _DAY_S
    removed = {_WITHOUT[each] for each in without}
    if not given and not removed:
        raise click.UsageError("Give a limit, or --without.")
    if both := sorted(removed & given.keys()):
        raise click.UsageError(f"Set a limit or remove it, not both: {', '.join(both)}.")
    with open_guard() as guard:
        done = guard.api_keys.set_limits(key_id, given | dict.fromkeys(removed))
    print_result(done.after, f"Changed the limits of {key_id}.", as_json=as_json)


@command.command()
@click.argument("key_id", metavar="ID")
@click.option(
    "--grace-hours",
    type=click.FloatRange(min=0, max=2160),
    default=24,
    show_default=True,
    help="How long the old secret still works.",
)
@json_option
def rotate(key_id: str, grace_hours: float, as_json: bool) -> None:
    """Give an API key a new secret and print the new key."""
    with open_guard() as guard:
        text, change = guard.api_keys.rotate(key_id, grace_s=grace_hours * 3600)
    print_result({"key": text, **(change.after or {})}, text, as_json=as_json)


@command.command()
@click.argument("key_id", metavar="ID")
@json_option
def revoke(key_id: str, as_json: bool) -> None:
    """Revoke an API key; its running answers end too."""
    with open_guard() as guard:
        change = guard.api_keys.revoke(key_id)
    print_result(change.after, f"Revoked {key_id}.", as_json=as_json)


@command.command("rotate-signing")
@json_option
def rotate_signing(as_json: bool) -> None:
    """Sign tokens with a new key from now on. No session ends, and no restart is needed."""
    with open_guard() as guard:
        kid = guard.rotate_signing_key()
    print_result({"kid": kid}, f"Tokens are signed with key {kid} from now on.", as_json=as_json)
