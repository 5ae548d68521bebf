"""``chatsvc audit show``: prints records for people, with account names if the database can be read.

Verifies nothing and writes nothing. CHATSVC_HOME may be a copy without database and keys.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from chatsvc.settings.load import Settings, load

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chatsvc.audit.format.record import Record
    from chatsvc.audit.verify.show import Filter

_COLOURS = {"allowed": "green", "denied": "red", "error": "red", "aborted": "yellow"}
_FOLLOW_S = 0.3


@click.command()
@click.option("--action", help="Only this action, such as chat.generate; a * at the end matches any ending.")
@click.option("--actor", help="Only this account's name or id, or cli:NAME; * as above.")
@click.option("--outcome", type=click.Choice(["allowed", "denied", "error", "aborted"]), help="Only this outcome.")
@click.option("--address", help="Only this client address.")
@click.option("--request-id", help="Only this X-Request-Id.")
@click.option("--since", help="Only from this time on, e.g. 2026-11-22T12:00.")
@click.option("--until", help="Only before this time.")
@click.option(
    "-n", "--last", type=click.IntRange(min=0), default=50, show_default=True, help="Number of records; 0 shows all."
)
@click.option("-f", "--follow", is_flag=True, help="Keep showing new records.")
@click.option("--json", "as_json", is_flag=True, help="Print records as JSON, one a line.")
def show(last: int, follow: bool, as_json: bool, **wanted: Any) -> None:
    """Show records, oldest first, of all logs of CHATSVC_HOME merged by time.

    The sign before an action: > begin, < end, - one record for the whole act, # a new segment of the log.
    """
    from chatsvc.audit.format.layout import logs
    from chatsvc.audit.verify.show import Tail, merged

    settings = load()
    directories = logs(settings.audit_directory)
    names = _account_names(settings) if wanted["actor"] or not as_json else {}
    chosen = _filter(directories, names, wanted)
    lines = _Lines(names, as_json=as_json)
    tails = [Tail(each) for each in directories]
    if last:
        for record in list(merged(tail.last(chosen, last) for tail in tails))[-last:]:
            lines.show(record)
    while follow or not last:
        for record in merged(tail.read() for tail in tails):
            if chosen.takes(record):
                lines.show(record)
        if not follow:
            return
        time.sleep(_FOLLOW_S)


class _Lines:
    """Prints one record a line; for people, with a header before the first."""

    def __init__(self, names: Mapping[str, str], *, as_json: bool) -> None:
        self._names = names
        self._as_json = as_json
        self._has_header = as_json

    def show(self, record: Record) -> None:
        from chatsvc.audit.format.record import encode
        from chatsvc.audit.verify.show import HEADER, describe_line

        if not self._has_header:
            self._has_header = True
            click.secho(HEADER, bold=True)
        if self._as_json:
            click.echo(encode(record).decode())
        else:
            click.secho(describe_line(record, self._names), fg=_COLOURS.get(str(record.get("outcome"))))


def _filter(directories: list[Path], names: Mapping[str, str], wanted: Mapping[str, Any]) -> Filter:
    """Which records to show. Records hold an account's id, so an account's name is looked up first.

    Raises:
        click.BadParameter: neither an account nor a record matches the actor.
    """
    from chatsvc.audit.verify.show import Filter, Tail, fits

    pattern = wanted["actor"]
    if pattern is None:
        return Filter(**wanted)
    accounts = frozenset(account_id for account_id, name in names.items() if fits(pattern, name))
    chosen = Filter(**wanted, accounts=accounts)
    is_known = accounts or any(fits(pattern, account_id) for account_id in names)
    if not is_known and not any(Tail(each).last(Filter(actor=pattern), 1) for each in directories):
        raise click.BadParameter(
            f"neither an account nor a record has the actor {pattern!r}; `chatsvc user list` shows the accounts.",
            param_hint="--actor",
        )
    return chosen


def _account_names(settings: Settings) -> dict[str, str]:
    """Account names by id; empty if the database is missing or cannot be read."""
    from sqlalchemy import make_url, select
    from sqlalchemy.exc import ProgrammingError

    from chatsvc.errors import StoreUnavailable
    from chatsvc.store.database import Database
    from chatsvc.store.tables import Account

    database = Database(settings.store_url, pool_size=1)
    try:
        if database.is_sqlite and not Path(make_url(settings.store_url).database or "").is_file():
            return {}  # connecting would create the file
        with database.reading() as session:
            return {row.id: row.name for row in session.execute(select(Account.id, Account.name))}
    except (StoreUnavailable, ProgrammingError):
        click.echo("chatsvc: the database cannot be read, so accounts are shown by their ids.", err=True)
        return {}
    finally:
        database.close()
