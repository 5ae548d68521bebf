"""``chatsvc config``: check and show the configuration, and write what other programs must agree with it on."""

from __future__ import annotations

import json
from pathlib import Path

import click

from chatsvc import settings as configuration


@click.group("config")
def command() -> None:
    """Check and show the configuration; write nginx's lists."""


@command.command()
def check() -> None:
    """Name every problem of the configuration at once."""
    loaded = configuration.load()
    if not loaded.guard.allowed_networks:
        click.echo("guard.allowed_networks is empty: nobody could connect, so `chatsvc serve` would refuse to start.")
        raise click.exceptions.Exit(1)
    click.echo("The configuration is in order.")


@command.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of TOML.")
def show(as_json: bool) -> None:
    """Print what is in force: file, environment and defaults together. Secrets are masked."""
    values = configuration.load().model_dump(mode="json")
    if as_json:
        click.echo(json.dumps(values, indent=2, ensure_ascii=False))
        return
    click.echo(f"# CHATSVC_HOME={values.pop('home')}")
    for section, keys in values.items():
        click.echo(f"\n[{section}]")
        for key, value in keys.items():
            click.echo(f"# {key} is not set" if value is None else f"{key} = {_toml(value)}")


def _toml(value: object) -> str:
    """A TOML value: JSON's texts, numbers, booleans and lists are TOML's too; a table is written inline."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)


@command.command()
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write, usually /etc/nginx/chatsvc/allow.conf; standard output when not given.",
)
def nginx(output: Path | None) -> None:
    """Write nginx's allow list from guard.allowed_networks, so that both say the same."""
    from chatsvc.cli.render import allow_list

    text = allow_list(configuration.load().guard.allowed_networks)
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")
