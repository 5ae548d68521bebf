"""``chatsvc user``: accounts. Knows the guard, not its tables."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from chatsvc.cli.accounts import open_guard

_AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group("user")
def command() -> None:
    """Accounts: add, list, find doubled ones, disable, change passwords, roles and limits."""


@command.command()
@click.argument("name")
@click.option("--role", "roles", multiple=True, help="A role; repeatable. Without one the account may do nothing.")
@click.option("--password-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Its first line.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@_AS_JSON
def add(name: str, roles: tuple[str, ...], password_file: Path | None, password_stdin: bool, as_json: bool) -> None:
    """Make the account NAME. Asks for the password where neither option says where it is."""
    password = _password(password_file, from_stdin=password_stdin)
    with administration.opened() as guard:
        change = guard.accounts.add(name, password, roles)
    _say(change.after, f"Added {name}.", as_json=as_json)


@command.command("list")
@_AS_JSON
def list_(as_json: bool) -> None:
    """List every account."""
    with administration.opened() as guard:
        accounts, after = [], ""
        while page := guard.accounts.list_accounts(after=after):
            accounts += page
            after = page[-1].name
    if as_json:
        click.echo(json.dumps([account.as_dict() for account in accounts], ensure_ascii=False))
        return
    for account in accounts:
        state = "disabled" if account.disabled else "enabled"
        click.echo(f"{account.name}\t{state}\t{' '.join(account.roles) or '-'}\t{account.source}")


@command.command()
@_AS_JSON
def duplicates(as_json: bool) -> None:
    """List accounts whose names differ in case or width alone; ends with 1 if there are some.

    Earlier versions made one for each spelling that was typed at a login. Of each name, keep the account whose
    conversations and keys are wanted, and remove the others.
    """
    with administration.opened() as guard:
        groups = guard.accounts.list_doubled()
    if as_json:
        click.echo(json.dumps([[account.as_dict() for account in group] for group in groups], ensure_ascii=False))
    elif not groups:
        click.echo("Every name has one account.")
    else:
        for group in groups:
            click.echo(", ".join(account.name for account in group))
            for account in group:
                state = "disabled" if account.disabled else "enabled"
                made = time.strftime("%Y-%m-%d", time.gmtime(account.created_at))
                click.echo(f"  {account.name}\t{state}\t{account.source}\tmade {made}")
        click.echo("Keep one of each line: `chatsvc user remove NAME` removes the others, spelled as above.")
    if groups:
        raise click.exceptions.Exit(1)


@command.command()
@click.argument("name")
@_AS_JSON
def disable(name: str, as_json: bool) -> None:
    """Disable an account: its sessions, keys and running answers end at once."""
    with administration.opened() as guard:
        change = guard.accounts.set_disabled(name, disabled=True)
    _say(change.after, f"Disabled {name}.", as_json=as_json)


@command.command()
@click.argument("name")
@_AS_JSON
def enable(name: str, as_json: bool) -> None:
    """Enable an account again. Its old sessions stay dead; its keys live."""
    with administration.opened() as guard:
        change = guard.accounts.set_disabled(name, disabled=False)
    _say(change.after, f"Enabled {name}.", as_json=as_json)


@command.command()
@click.argument("name")
@click.option("--password-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Its first line.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@_AS_JSON
def passwd(name: str, password_file: Path | None, password_stdin: bool, as_json: bool) -> None:
    """Give an account a new password; all its sessions end."""
    password = _password(password_file, from_stdin=password_stdin)
    with administration.opened() as guard:
        change = guard.accounts.set_password(name, password)
        guard.throttle.forget(name)
    _say(change.after, f"Changed the password of {name}.", as_json=as_json)


@command.command()
@click.argument("name")
@click.option("--role", "roles", multiple=True, help="A role; repeatable. Replaces all roles.")
@_AS_JSON
def roles(name: str, roles: tuple[str, ...], as_json: bool) -> None:
    """Replace an account's roles; tokens that are out have the new scopes at once."""
    with administration.opened() as guard:
        change = guard.accounts.set_roles(name, roles)
    _say(change.after, f"Changed the roles of {name}.", as_json=as_json)


@command.command()
@click.argument("name")
@click.option("--requests-per-minute", type=click.IntRange(min=1))
@click.option("--tokens-per-day", type=click.IntRange(min=1))
@click.option("--max-concurrent", type=click.IntRange(min=1))
@_AS_JSON
def limits(name: str, as_json: bool, **limits: int | None) -> None:
    """Set an account's own limits; one that is not given goes back to the role's or the default."""
    with administration.opened() as guard:
        change = guard.accounts.set_limits(name, limits)
    _say(change.after, f"Changed the limits of {name}.", as_json=as_json)


@command.command()
@click.argument("name")
@click.confirmation_option(prompt="Remove the account with its conversations and keys?")
@_AS_JSON
def remove(name: str, as_json: bool) -> None:
    """Remove an account with its sessions, keys and conversations."""
    with administration.opened() as guard:
        change = guard.accounts.remove(name)
    _say(change.before, f"Removed {name}.", as_json=as_json)


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
    """The password in a file: its first line, whatever ends it.

    Raises:
        click.UsageError: it is not UTF-8.
    """
    try:
        # utf-8-sig: Windows editors begin a file with a byte order mark
        return data.split(b"\n", 1)[0].removesuffix(b"\r").decode("utf-8-sig")
    except UnicodeDecodeError:
        raise click.UsageError("The password is not UTF-8 text.") from None  # its bytes belong in no message


def _say(value: dict[str, Any] | None, sentence: str, *, as_json: bool) -> None:
    click.echo(json.dumps(value, ensure_ascii=False) if as_json else sentence)
