"""``chatsvc token``: lists sessions and ends them with all their tokens. Knows the guard, not its tables."""

from __future__ import annotations

import sys

import click

from chatsvc.cli.accounts.open_guard import open_guard
from chatsvc.cli.output import json_option, print_json, print_result, print_table
from chatsvc.errors import NotFound
from chatsvc.guard.assembly import Guard
from chatsvc.guard.credentials.tokens import unverified_sid


@click.group("token")
def command() -> None:
    """List login sessions; revoke sessions and tokens."""


@command.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--account", help="End every session of this account.")
@click.option("--stdin", "from_stdin", is_flag=True, help="Read a leaked token from standard input; end its session.")
@json_option
def revoke(ids: tuple[str, ...], account: str | None, from_stdin: bool, as_json: bool) -> None:
    """End sessions: by session ID, by a token's ID (jti), by account, or by a token on standard input.

    Every token of a session stops working at once, in every web process, and its running answers end.
    """
    if not ids and account is None and not from_stdin:
        raise click.UsageError("Give an ID, --account or --stdin.")
    with open_guard() as guard:
        wanted = list(ids)
        if from_stdin:
            wanted.append(unverified_sid(sys.stdin.read().strip()) or "")
        missing = [sid for sid in wanted if not _end(guard, sid)]
        num_ended = len(wanted) - len(missing)
        if account is not None:
            num_ended += guard.sessions.end_all_of(guard.accounts.get(account).id, "command")
    print_result({"num_ended": num_ended, "not_found": missing}, f"Ended {num_ended} sessions.", as_json=as_json)
    if missing:
        click.echo("No such session, or it has ended already: " + ", ".join(missing), err=True)
        raise click.exceptions.Exit(1)


@command.command("list")
@click.option("--account", help="List only sessions of this account.")
@json_option
def list_(account: str | None, as_json: bool) -> None:
    """List the sessions that are logged in."""
    with open_guard() as guard:
        sessions = guard.sessions.list_sessions(account)
    if as_json:
        print_json([session.as_dict() for session in sessions])
        return
    print_table(("SESSION", "ACCOUNT", "ADDRESS"), ((each.sid, each.account, each.address) for each in sessions))


def _end(guard: Guard, given: str) -> bool:
    """End the session with that id, or the session that the token with that id belongs to."""
    try:
        guard.sessions.end(guard.sessions.sid_of(given), "command")
    except NotFound:
        return False
    return True
