"""``chatsvc user``: accounts. Knows the guard, not its tables."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from chatsvc.cli.accounts.open_guard import open_guard
from chatsvc.cli.output import json_option, print_json, print_result, print_table

_STATES = {True: "disabled", False: "enabled"}
_PASSWORD_OPTIONS = (
    click.option(
        "--password-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A file whose first line is the password.",
    ),
    click.option("--password-stdin", is_flag=True, help="Read the password from standard input."),
)


def _password_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the two options that say where the password is."""
    for option in reversed(_PASSWORD_OPTIONS):
        function = option(function)
    return function


@click.group("user")
def command() -> None:
    """Accounts: add, list, find duplicates, disable, remove; change passwords, roles and limits."""


@command.command()
@click.argument("name")
@click.option("--role", "roles", multiple=True, help="A role; repeatable. An account without roles may do nothing.")
@_password_options
@json_option
def add(name: str, roles: tuple[str, ...], password_file: Path | None, password_stdin: bool, as_json: bool) -> None:
    """Add the account NAME. Without a password option, ask for the password on the terminal."""
    password = _password(password_file, from_stdin=password_stdin)
    with open_guard() as guard:
        change = guard.accounts.add(name, password, roles)
    print_result(change.after, f"Added {name}.", as_json=as_json)


@command.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List every account."""
    with open_guard() as guard:
        accounts, after = [], ""
        while page := guard.accounts.list_accounts(after=after):
            accounts += page
            after = page[-1].name
    if as_json:
        print_json([account.as_dict() for account in accounts])
        return
    rows = ((each.name, _STATES[each.disabled], " ".join(each.roles) or "-", each.source) for each in accounts)
    print_table(("NAME", "STATE", "ROLES", "SOURCE"), rows)


@command.command()
@json_option
def duplicates(as_json: bool) -> None:
    """List accounts whose names differ only in case or character width; exit code 1 if there are any.

    Earlier versions made an account for each spelling that was typed at a login. For each name, keep the account whose
    conversations and keys are wanted, and remove the others.
    """
    with open_guard() as guard:
        groups = guard.accounts.list_doubled()
    if as_json:
        print_json([[account.as_dict() for account in group] for group in groups])
    elif not groups:
        click.echo("Every name has one account.")
    else:
        for group in groups:
            click.echo(", ".join(account.name for account in group))
            for account in group:
                made = time.strftime("%Y-%m-%d", time.gmtime(account.created_at))
                click.echo(f"  {account.name}\t{_STATES[account.disabled]}\t{account.source}\tmade {made}")
        click.echo("Keep one account of each group; remove the others: `chatsvc user remove NAME`, spelled as above.")
    if groups:
        raise click.exceptions.Exit(1)


@command.command()
@click.argument("name")
@json_option
def disable(name: str, as_json: bool) -> None:
    """Disable an account: its sessions, keys and running answers end at once."""
    with open_guard() as guard:
        change = guard.accounts.set_disabled(name, disabled=True)
    print_result(change.after, f"Disabled {name}.", as_json=as_json)


@command.command()
@click.argument("name")
@json_option
def enable(name: str, as_json: bool) -> None:
    """Enable an account again. Its API keys work again; its old sessions do not."""
    with open_guard() as guard:
        change = guard.accounts.set_disabled(name, disabled=False)
    print_result(change.after, f"Enabled {name}.", as_json=as_json)


@command.command()
@click.argument("name")
@_password_options
@json_option
def passwd(name: str, password_file: Path | None, password_stdin: bool, as_json: bool) -> None:
    """Give an account a new password; all its sessions end."""
    password = _password(password_file, from_stdin=password_stdin)
    with open_guard() as guard:
        change = guard.accounts.set_password(name, password)
        guard.throttle.forget(name)
    print_result(change.after, f"Changed the password of {name}.", as_json=as_json)


@command.command()
@click.argument("name")
@click.option("--role", "roles", multiple=True, help="A role; repeatable. Replaces all roles.")
@json_option
def roles(name: str, roles: tuple[str, ...], as_json: bool) -> None:
    """Replace an account's roles. Tokens issued before have the new scopes at once."""
    with open_guard() as guard:
        change = guard.accounts.set_roles(name, roles)
    print_result(change.after, f"Changed the roles of {name}.", as_json=as_json)


@command.command()
@click.argument("name")
@click.option("--requests-per-minute", type=click.IntRange(min=1))
@click.option("--tokens-per-day", type=click.IntRange(min=1))
@click.option("--max-concurrent", type=click.IntRange(min=1))
@json_option
def limits(name: str, as_json: bool, **limits: int | None) -> None:
    """Set an account's own limits. A limit that is not given returns to the role's or the default limit."""
    with open_guard() as guard:
        change = guard.accounts.set_limits(name, limits)
    print_result(change.after, f"Changed the limits of {name}.", as_json=as_json)


@command.command()
@click.argument("name")
@click.confirmation_option(prompt="Remove the account with its conversations and keys?")
@json_option
def remove(name: str, as_json: bool) -> None:
    """Remove an account with its sessions, keys and conversations."""
    with open_guard() as guard:
        change = guard.accounts.remove(name)
    print_result(change.before, f"Removed {name}.", as_json=as_json)


def _password(file: Path | None, *, from_stdin: bool) -> str:
    if (file is not None) == from_stdin and file is not None:
        raise click.UsageError("Give --password-file or --password-stdin, not both.")
    if file is not None:
        return first_line(file.read_bytes())
    if from_stdin:
        return first_line(sys.stdin.buffer.read())
    if not sys.stdin.isatty():
        raise click.UsageError("Give --password-file or --password-stdin: there is no terminal to ask on.")
    from chatsvc.guard.accounts.passwords import MAX_PASSWORD_LENGTH, MIN_PASSWORD_LENGTH

    text = f"Password ({MIN_PASSWORD_LENGTH} to {MAX_PASSWORD_LENGTH} characters)"
    asked: str = click.prompt(text, hide_input=True, confirmation_prompt=True)
    return asked


def first_line(data: bytes) -> str:
    """The password in a file: its first line, without the line ending.

    Raises:
        click.UsageError: it is not UTF-8.
    """
    try:
        # utf-8-sig: Windows editors begin a file with a byte order mark
        return data.split(b"\n", 1)[0].removesuffix(b"\r").decode("utf-8-sig")
    except UnicodeDecodeError:
        raise click.UsageError("The password is not UTF-8 text.") from None  # no message may repeat it
