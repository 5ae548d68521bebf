"""What the administrative commands share: the guard, opened for one act whose records go into the outbox."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import contextmanager

import click

from chatsvc.errors import InvalidRequest, OperatorError
from chatsvc.guard.assembly import Guard, assemble
from chatsvc.guard.outbox import put_into_outbox
from chatsvc.settings import load as configuration
from chatsvc.wiring import guard_options


@contextmanager
def opened() -> Iterator[Guard]:
    """The guard on this home's database and keys.

    Raises:
        OperatorError: the home is not there; most often CHATSVC_HOME is not set, or the working directory is another.
        click.UsageError: a value on the command line cannot be.
    """
    settings = configuration.load()
    if not settings.home.is_dir():
        raise OperatorError(
            f"There is no {settings.home}: set CHATSVC_HOME to the home of the service; a new one is made by "
            "`chatsvc quickstart` or `chatsvc model import`."
        )
    options = guard_options(settings)
    guard = assemble(options, on_change=put_into_outbox(actor()))
    try:
        yield guard
    except InvalidRequest as error:
        raise click.UsageError(error.message) from error
    finally:
        guard.close()


def actor() -> str:
    """Who acts: the account of this machine that ran the command."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # a container's numeric user without a name
        return "cli"
