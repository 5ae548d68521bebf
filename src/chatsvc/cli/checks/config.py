"""``chatsvc config``: checks and shows the configuration, and writes nginx's files from it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import click

from chatsvc.errors import OperatorError
from chatsvc.resources import resource_path
from chatsvc.settings.load import Settings, load
from chatsvc.wiring import model_store


@click.group("config")
def command() -> None:
    """Check and show the configuration; write nginx's files."""


@command.command()
def check() -> None:
    """Report every problem of the configuration at once.

    Exit code 3 if a value is wrong; else 1 if `chatsvc serve` could not start because of a file, a directory or an
    address that the configuration names. Connects to nothing.
    """
    from chatsvc.cli.checks import start_checks

    loaded = load()
    for warning in start_checks.warnings(loaded):
        click.echo(f"Warning: {warning}", err=True)
    if problems := start_checks.problems(loaded):
        for problem in problems:
            click.echo(problem)
        raise click.exceptions.Exit(1)
    click.echo("The configuration is in order.")


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of TOML.")
def show(as_json: bool) -> None:
    """Print the values in force, from file, environment and defaults. Secrets are masked."""
    values = load().model_dump(mode="json")
    if as_json:
        click.echo(json.dumps(values, indent=2, ensure_ascii=False))
        return
    click.echo(f"# CHATSVC_HOME={values.pop('home')}")
    for section, keys in values.items():
        click.echo(f"\n[{section}]")
        for key, value in keys.items():
            click.echo(f"# {key} is not set" if value is None else f"{key} = {_toml(value)}")


def _toml(value: object) -> str:
    """A TOML value. JSON's strings, numbers, booleans and lists are TOML too; a table is written inline."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)


@command.command()
@click.option(
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="The directory to write to, such as /etc/nginx.",
)
@click.option(
    "--server-name",
    required=True,
    help="The certificate's host name; nginx rejects TLS for others.",
)
@click.option("--certificate", "chain", help="The certificate chain, PEM; by default chain.pem in --self-signed.")
@click.option("--certificate-key", "key", help="The certificate's key, PEM; by default key.pem in --self-signed.")
@click.option(
    "--listen", multiple=True, default=("443",), show_default=True, help="HTTPS: port or address:port; repeatable."
)
@click.option(
    "--redirect",
    multiple=True,
    help="Plain HTTP that redirects to HTTPS: port or address:port, e.g. 80; repeatable.",
)
@click.option(
    "--self-signed",
    type=click.Path(file_okay=False, path_type=Path),
    help="For a first try: make chain.pem and key.pem in this folder unless they exist.",
)
@click.option(
    "--run-directory",
    default="/run/nginx",
    show_default=True,
    help="An existing directory for nginx's pid file and temporary files.",
)
@click.option("--access-log", default="/dev/stdout", show_default=True, help="Where nginx logs requests.")
def nginx(
    output: Path, listen: tuple[str, ...], chain: str | None, key: str | None, self_signed: Path | None, **options: Any
) -> None:
    """Write nginx's configuration with the allow list and limits of this service.

    Needs server.socket, the unix socket between nginx and the web process. Run it again, then `nginx -s reload`, after
    a change of guard.allowed_networks and after importing a model with a longer context.
    """
    from chatsvc.cli.checks import certificate, nginx_files

    loaded = load()
    if loaded.server.socket is None:
        raise OperatorError("server.socket is not set: behind nginx the web process listens on a unix socket only.")
    chain, key = _certificate_files(chain, key, self_signed)
    values = nginx_files.nginx_values(
        nginx_files.NginxOptions(
            listen=listen, certificate=chain, certificate_key=key, socket=str(loaded.server.socket), **options
        ),
        max_body_bytes=_max_chat_bytes(loaded),
        max_chats=2 * loaded.server_threads,
        deadline_s=loaded.chat.deadline_s,
    )
    texts = {name: nginx_files.fill_in(_template(name), values) for name in nginx_files.TEMPLATES}
    texts[nginx_files.ALLOW_LIST] = nginx_files.allow_list(loaded.guard.allowed_networks)
    for name, text in texts.items():
        path = output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        click.echo(path)
    if self_signed and (made := certificate.make_unless_there(self_signed, options["server_name"])):
        click.echo(f"{made} (self-signed: for a first try only, browsers will warn)")


def _certificate_files(chain: str | None, key: str | None, self_signed: Path | None) -> tuple[str, str]:
    """The named files, else those of ``--self-signed``, as absolute paths: nginx has another working directory."""
    from chatsvc.cli.checks import certificate

    if self_signed:
        chain = chain or str((self_signed / certificate.CHAIN).absolute())
        key = key or str((self_signed / certificate.KEY).absolute())
    if not chain or not key:
        raise click.UsageError("Give --certificate and --certificate-key, or --self-signed for a first try.")
    return chain, key


def _max_chat_bytes(loaded: Settings) -> int:
    """The largest chat body for any model in the store, so that a change of models needs no new nginx files."""
    from chatsvc.errors import ModelRefused
    from chatsvc.http.wire.schema import max_chat_bytes

    if loaded.server.max_body_bytes != "auto":
        return loaded.server.max_body_bytes
    lengths = []
    for folder in model_store(loaded).list():
        with contextlib.suppress(ModelRefused):  # a model that fails verification is not served
            lengths.append(folder.description().context_length)
    return max_chat_bytes(max(lengths, default=None))


def _template(name: str) -> str:
    return resource_path(f"nginx/{name}").read_text(encoding="utf-8")
