"""``chatsvc audit``: verify and show the audit log. Reads only ``CHATSVC_HOME``, which may be a copy."""

from __future__ import annotations

import json
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from chatsvc.audit.options import AuditOptions
    from chatsvc.audit.reading import Filter, Tail
    from chatsvc.audit.record import Record
    from chatsvc.audit.verdict import Verdict
    from chatsvc.audit.verify import Trust
    from chatsvc.settings import Settings

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_COLOURS = {"allowed": "green", "denied": "red", "error": "red", "aborted": "yellow"}
_FOLLOW_S = 0.3


def audit_options(settings: Settings) -> AuditOptions:
    """The audit log's options out of the configuration."""
    from chatsvc.audit.options import AuditOptions

    return AuditOptions(
        directory=settings.audit_directory,
        keys=settings.keys_directory,
        origin=settings.audit.origin,
        checkpoint_records=settings.audit.checkpoint_records,
        checkpoint_interval_s=settings.audit.checkpoint_interval_s,
    )


@click.group()
def command() -> None:
    """The audit log: verify it, look at it.

    A copy of CHATSVC_HOME is enough; no secret is needed.
    """


@command.command()
@click.argument("file", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--witness", type=_FILE, help="Checkpoints kept elsewhere.")
@click.option("--key", type=_FILE, help="Believe only these public keys.")
@click.option("--seal-key", type=_FILE, multiple=True, help="A log's first sealing key: checks every record's MAC too.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdicts as JSON.")
@click.pass_context
def verify(
    ctx: click.Context,
    file: Path | None,
    *,
    witness: Path | None,
    key: Path | None,
    seal_key: tuple[Path, ...],
    as_json: bool,
) -> None:
    r"""Verify the log of CHATSVC_HOME, or FILE (a log's directory, a segment, an export).

    \b
    Exit codes: 0 clean; 1 tampered; 4 the last line was not written to its end;
    5 fewer records than a checkpoint or witness says; 6 signed by an unknown key; 3 could not do it.
    """
    from chatsvc.audit.verdict import worst

    verdicts = _verdicts(file, _trust(witness, key, seal_key))
    if as_json:
        click.echo(json.dumps({"exit_code": worst(verdicts), "logs": [each.as_json() for each in verdicts]}, indent=2))
    else:
        for each in verdicts:
            click.secho(f"{each.what}: {each.message}", fg="red" if each.exit_code else "green")
    ctx.exit(worst(verdicts))


def _trust(witness: Path | None, key: Path | None, seal_keys: tuple[Path, ...]) -> Trust:
    from chatsvc.audit.checkpoint import parse_vkey
    from chatsvc.audit.seal import parse_seal_key
    from chatsvc.audit.verify import Trust
    from chatsvc.audit.witness import Seen

    lines = key.read_text(encoding="utf-8").splitlines() if key else []
    return Trust(
        keys=tuple(parse_vkey(line) for line in lines if line.strip()),
        seal_keys=tuple(parse_seal_key(path.read_text(encoding="utf-8")) for path in seal_keys),
        witness=Seen.read(witness) if witness else None,
    )


def _verdicts(file: Path | None, trust: Trust) -> list[Verdict]:
    from chatsvc import settings as configuration
    from chatsvc.audit.layout import logs
    from chatsvc.audit.verify import verify_segment, verify_tree
    from chatsvc.errors import OperatorError

    directory = configuration.load().audit_directory if file is None or file.is_file() else file
    if file is not None and file.is_file():
        return [verify_segment(file, directory, trust)]
    if not logs(directory) and trust.witness is None:
        raise OperatorError(f"There is no audit log in {directory}; set CHATSVC_HOME or name the log.")
    return verify_tree(directory, trust)


@command.command()
@click.option("--action", help="Such as chat.generate; a * at the end takes all that begin so.")
@click.option("--actor", help="An account.")
@click.option("--outcome", type=click.Choice(["allowed", "denied", "error", "aborted"]))
@click.option("--address", help="A client address.")
@click.option("--request-id", help="An X-Request-Id.")
@click.option("--since", help="From this time on, e.g. 2026-11-22T12:00.")
@click.option("--until", help="Before this time.")
@click.option("-n", "--last", type=click.IntRange(min=0), default=50, show_default=True, help="So many; 0 shows all.")
@click.option("-f", "--follow", is_flag=True, help="Go on showing what is written.")
@click.option("--json", "as_json", is_flag=True, help="Print records as they are, one a line.")
def show(last: int, follow: bool, as_json: bool, **wanted: str | None) -> None:
    """Show records, oldest first; all logs of CHATSVC_HOME merged by time."""
    from chatsvc import settings as configuration
    from chatsvc.audit.layout import logs
    from chatsvc.audit.reading import Filter, Tail, merged

    tails = [Tail(each) for each in logs(configuration.load().audit_directory)]
    chosen = Filter(**wanted)
    for record in deque((each for each in merged(tails) if chosen.takes(each)), maxlen=last or None):
        _show(record, as_json=as_json)
    while follow:
        time.sleep(_FOLLOW_S)
        _show_new(tails, chosen, as_json=as_json)


def _show_new(tails: list[Tail], chosen: Filter, *, as_json: bool) -> None:
    from chatsvc.audit.reading import merged

    for record in merged(tails):
        if chosen.takes(record):
            _show(record, as_json=as_json)


def _show(record: Record, *, as_json: bool) -> None:
    from chatsvc.audit.reading import describe_line
    from chatsvc.audit.record import encode

    if as_json:
        click.echo(encode(record).decode())
    else:
        click.secho(describe_line(record), fg=_COLOURS.get(str(record.get("outcome"))))
