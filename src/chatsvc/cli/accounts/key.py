"""``chatsvc key``: API keys, and the keys that tokens are signed with. Knows the guard, not its tables."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import click

from chatsvc.cli.accounts import open_guard
from chatsvc.guard.credentials.api_keys import NewKey

_AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_DAY_S = 86_400
_WITHOUT = {
    "expiry": "expires_at",
    "requests-per-minute": "requests_per_minute",
    "tokens-per-day": "tokens_per_day",
    "max-concurrent": "max_concurrent",
}
_LIMITS = (
    click.option("--expires-days", type=click.FloatRange(min=0, min_open=True), help="Counted from now."),
    click.option("--requests-per-minute", type=click.IntRange(min=1), help="Its own limit."),
    click.option("--tokens-per-day", type=click.IntRange(min=1), help="Its own limit."),
    click.option("--max-concurrent", type=click.IntRange(min=1), help="Its own limit."),
)


def _with_limits(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each limit that a key can have."""
    for option in reversed(_LIMITS):
        function = option(function)
    return function


@click.group("key")
def command() -> None:
    """API keys and signing keys: create, list, change, rotate, revoke."""


@command.command()
@click.option("--name", required=True, help="What it is for.")
@click.option("--scope", "scopes", multiple=True, required=True, help="What it may do; repeatable.")
@click.option("--account", required=True, help="Whom it counts for.")
@_with_limits
@_AS_JSON
def create(name: str, scopes: tuple[str, ...], account: str, expires_days: float | None, as_json: bool,
           **limits: int | None) -> None:  # fmt: skip
    """Make an API key and print it: the only time it can be seen. Without --expires-days it never expires."""
    expires_at = time.time() + expires_days * _DAY_S if expires_days is not None else None
    with administration.opened() as guard:
        text, change = guard.api_keys.create(
            NewKey(account=account, name=name, scopes=scopes, expires_at=expires_at, **limits)
        )
    click.echo(json.dumps({"key": text, **(change.after or {})}, ensure_ascii=False) if as_json else text)


@command.command("list")
@click.option("--account", help="Only this account's.")
@_AS_JSON
def list_(account: str | None, as_json: bool) -> None:
    """List API keys, without their secrets."""
    with administration.opened() as guard:
        keys = guard.api_keys.list_keys(account)
    if as_json:
        click.echo(json.dumps([key.as_dict() for key in keys], ensure_ascii=False))
        return
    for key in keys:
        state = "revoked" if key.revoked else "valid"
        click.echo(f"{key.id}\t{state}\t{key.account}\t{' '.join(key.scopes)}\t{key.name}")


@command.command()
@click.argument("key_id", metavar="ID")
@_with_limits
@click.option("--without", type=click.Choice(list(_WITHOUT)), multiple=True, help="Take this limit away; repeatable.")
@_AS_JSON
def change(key_id: str, expires_days: float | None, without: tuple[str, ...], as_json: bool,
           **limits: int | None) -> None:  # fmt: skip
    """Change the limits of an API key, from its next request on. What is not given stays as it is."""
    given: dict[str, float | None] = {name: value for name, value in limits.items() if value is not None}
    if expires_days is not None:
        given["expires_at"] = time.time() + expires_days * _DAY_S
    taken = {_WITHOUT[each] for each in without}
    if not given and not taken:
        raise click.UsageError("Give a limit, or --without.")
    if both := sorted(taken & given.keys()):
        raise click.UsageError(f"Give a limit or take it away, not both: {', '.join(both)}.")
    with administration.opened() as guard:
        done = guard.api_keys.set_limits(key_id, given | dict.fromkeys(taken))
    click.echo(json.dumps(done.after, ensure_ascii=False) if as_json else f"Changed the limits of {key_id}.")


@command.command()
@click.argument("key_id", metavar="ID")
@click.option(
    "--grace-hours", type=click.FloatRange(min=0, max=2160), default=24, show_default=True, help="The old one works on."
)
@_AS_JSON
def rotate(key_id: str, grace_hours: float, as_json: bool) -> None:
    """Give an API key a new secret and print the new key."""
    with administration.opened() as guard:
        text, change = guard.api_keys.rotate(key_id, grace_s=grace_hours * 3600)
    click.echo(json.dumps({"key": text, **(change.after or {})}, ensure_ascii=False) if as_json else text)


@command.command()
@click.argument("key_id", metavar="ID")
@_AS_JSON
def revoke(key_id: str, as_json: bool) -> None:
    """End an API key; answers that run with it end too."""
    with administration.opened() as guard:
        change = guard.api_keys.revoke(key_id)
    click.echo(json.dumps(change.after, ensure_ascii=False) if as_json else f"Revoked {key_id}.")


@command.command("rotate-signing")
@_AS_JSON
def rotate_signing(as_json: bool) -> None:
    """Sign tokens with a new key from now on; nobody is logged out, and nothing has to be restarted."""
    with administration.opened() as guard:
        kid = guard.rotate_signing_key()
    click.echo(json.dumps({"kid": kid}) if as_json else f"Tokens are signed with key {kid} from now on.")
