"""``chatsvc doctor``: checks this machine and this installation, and names the remedy of each finding."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING

import click

from chatsvc.errors import ConfigurationInvalid
from chatsvc.settings.load import Settings, load

if TYPE_CHECKING:
    from chatsvc.cli.checks.doctor_checks import Finding

_SIGNS = {"good": "ok  ", "warning": "warn", "fatal": "FAIL"}


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="One JSON object with every finding.")
def command(as_json: bool) -> None:
    """Check this machine and this installation; name each remedy.

    Ends with 1 if anything would keep the service from running well enough to answer.
    """
    findings = list(_examine())
    if as_json:
        click.echo(json.dumps({"findings": [asdict(finding) for finding in findings]}, ensure_ascii=False))
    else:
        for finding in findings:
            click.echo(f"{_SIGNS[finding.level]}  {finding.check}: {finding.message}")
            if finding.remedy:
                click.echo(f"      -> {finding.remedy}")
    if any(finding.level == "fatal" for finding in findings):
        raise click.exceptions.Exit(1)


def _examine() -> Iterator[Finding]:
    from chatsvc.cli.checks import doctor_checks as checks

    yield from chain(checks.python(), checks.packages(), checks.processor())
    try:
        settings = load()
    except ConfigurationInvalid as error:
        for problem in error.problems:
            yield checks.Finding("configuration", "fatal", problem, "config/chatsvc.toml shows every key.")
        return
    yield from checks.configuration(settings)
    yield from _examine_installation(settings)


def _examine_installation(settings: Settings) -> Iterator[Finding]:
    from chatsvc.cli.checks import doctor_checks as checks

    yield from chain(
        checks.runner(settings),
        checks.room(settings),
        checks.clock(settings),
        checks.door(settings),
        checks.files(settings),
        checks.audit_keys(settings),
        checks.model(settings),
    )
