"""``chatsvc doctor``: checks this machine and this installation, and names the remedy of each finding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING

import click

from chatsvc.cli.output import json_option, print_json
from chatsvc.errors import ConfigurationInvalid
from chatsvc.settings.load import load

if TYPE_CHECKING:
    from chatsvc.cli.checks.doctor_checks import Finding

_SIGNS = {"good": "ok  ", "warning": "warn", "fatal": "FAIL"}


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Check this machine and this installation; name each remedy.

    Exit code 1 if something would keep the service from answering.
    """
    findings = list(_examine())
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings]})
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
            yield checks.Finding("configuration", "fatal", problem, "config/chatsvc.toml documents every key.")
        return
    for check in (
        checks.configuration,
        checks.runner,
        checks.memory_and_disk,
        checks.clock,
        checks.network,
        checks.permissions,
        checks.audit_keys,
        checks.model,
    ):
        yield from check(settings)
