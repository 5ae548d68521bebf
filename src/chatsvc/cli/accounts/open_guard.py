"""Opens the guard for one administrative command; what the command changes is recorded through the outbox."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import contextmanager

import click

from chatsvc.errors import InvalidRequest, OperatorError
from chatsvc.guard.assembly import Guard, assemble
from chatsvc.guard.outbox import put_into_outbox
from chatsvc.settings.load import load
from chatsvc.wiring import guard_options


@contextmanager
def open_guard() -> Iterator[Guard]:
    """The guard on the database and keys of CHATSVC_HOME.

    Raises:
        OperatorError: CHATSVC_HOME does not exist: often it is not set, or the working directory is the wrong one.
        click.UsageError: the guard refuses a value of the command line.
    """
    settings = load()
    if not settings.home.is_dir():
        raise OperatorError(
            f"There is no {settings.home}: set CHATSVC_HOME to the home of the service; a new one is made by "
            "`chatsvc quickstart` or `chatsvc model import`."
        )
    guard = assemble(guard_options(settings), on_change=put_into_outbox(actor()))
    try:
        yield guard
    except InvalidRequest as error:
        raise click.UsageError(error.message) from error
    finally:
        guard.close()


def actor() -> str:
    """The actor of the record: the account of this machine that runs the command."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # in a container the user may be a number without a name
        return "cli"
