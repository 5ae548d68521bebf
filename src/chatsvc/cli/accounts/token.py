"""``chatsvc token``: ends sessions and what belongs to them. Knows the guard, not its tables."""

from __future__ import annotations

import json
import sys

import click

from chatsvc.cli.accounts import open_guard
from chatsvc.errors import NotFound
from chatsvc.guard.assembly import Guard
from chatsvc.guard.credentials.tokens import unverified_sid

_AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group("token")
def command() -> None:
    """Revoke tokens and sessions; list who is logged in."""


@command.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--account", help="Every session of this account.")
@click.option("--stdin", "from_stdin", is_flag=True, help="Read a token that was found somewhere; ends its session.")
@_AS_JSON
def revoke(ids: tuple[str, ...], account: str | None, from_stdin: bool, as_json: bool) -> None:
    """End sessions, by their ID or a token's (jti), by an account, or by a token on standard input.

    Every token of a session is dead at once, in every web process, and its running answers end.
    """
    if not ids and account is None and not from_stdin:
        raise click.UsageError("Say which: an ID, --account or --stdin.")
    with administration.opened() as guard:
        wanted = list(ids)
        if from_stdin:
            wanted.append(unverified_sid(sys.stdin.read().strip()) or "")
        missing = [sid for sid in wanted if not _end(guard, sid)]
        num_ended = len(wanted) - len(missing)
        if account is not None:
            num_ended += guard.sessions.end_all_of(guard.accounts.get(account).id, "command")
    click.echo(json.dumps({"num_ended": num_ended, "not_found": missing}) if as_json else f"Ended {num_ended}.")
    if missing:
        click.echo("There is no such session, or it has ended: " + ", ".join(missing), err=True)
        raise click.exceptions.Exit(1)


@command.command("list")
@click.option("--account", help="Only this account's.")
@_AS_JSON
def list_(account: str | None, as_json: bool) -> None:
    """List the sessions that are alive."""
    with administration.opened() as guard:
        sessions = guard.sessions.list_sessions(account)
    if as_json:
        click.echo(json.dumps([session.as_dict() for session in sessions], ensure_ascii=False))
        return
    for session in sessions:
        click.echo(f"{session.sid}\t{session.account}\t{session.address}")


def _end(guard: Guard, given: str) -> bool:
    """End the session of that id, or the one that a token of that id belongs to."""
    try:
        guard.sessions.end(guard.sessions.sid_of(given), "command")
    except NotFound:
        return False
    return True
