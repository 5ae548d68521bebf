"""Writes docs/cli.md: the help of every command, as the program prints it. `make docs` runs it, a test compares."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from chatsvc.cli.main import main

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
_WIDTH = 100
_INTRODUCTION = """\
# The command line

Made by `make docs` from the program itself; a test keeps it so.
Exit codes: 0 done, 1 the answer is no (a verification failed), 2 wrong usage, 3 could not do it.
`chatsvc audit verify` has more of them, in `audit-format.md`.
"""


def commands(command: click.Command, path: str, parent: click.Context | None) -> Iterator[tuple[str, str]]:
    """Every command with its help text, a group before its members."""
    context = click.Context(command, info_name=path.rpartition(" ")[2], parent=parent, terminal_width=_WIDTH)
    yield path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            member = command.get_command(context, name)
            if member is not None and not member.hidden:
                yield from commands(member, f"{path} {name}", context)


def page() -> str:
    """The whole page."""
    parts = [f"## `{path}`\n\n```\n{text.rstrip()}\n```\n" for path, text in commands(main, "chatsvc", None)]
    return "\n".join([_INTRODUCTION, *parts])


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
