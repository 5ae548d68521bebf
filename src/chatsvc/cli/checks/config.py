"""``chatsvc config``: check and show the configuration, and write what other programs must agree with it on."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import click

from chatsvc.errors import OperatorError
from chatsvc.resources import resource_path
from chatsvc.settings import load as configuration


@click.group("config")
def command() -> None:
    """Check and show the configuration; write nginx's files."""


@command.command()
def check() -> None:
    """Name every problem of the configuration at once.

    First the values: where any is wrong it ends with 3. Then the files, directories and addresses that a start would
    use; nothing is connected to. It ends with 1 where `chatsvc serve` would refuse to start because of one.
    """
    from chatsvc.cli.checks import start_checks

    loaded = configuration.load()
    for warning in preflight.warnings(loaded):
        click.echo(f"Warning: {warning}", err=True)
    if problems := preflight.problems(loaded):
        for problem in problems:
            click.echo(problem)
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
@click.option("--output", required=True, type=click.Path(file_okay=False, path_type=Path), help="Such as /etc/nginx.")
@click.option("--server-name", required=True, help="The name in the certificate; any other gets no handshake.")
@click.option("--certificate", "chain", help="The certificate chain, PEM; default: chain.pem in --self-signed.")
@click.option("--certificate-key", "key", help="Its key, PEM; default: key.pem in --self-signed.")
@click.option("--listen", multiple=True, default=("443",), show_default=True, help="Port or address:port; repeatable.")
@click.option(
    "--redirect", multiple=True, help="Also send browsers from plain HTTP here to HTTPS, such as 80; repeatable."
)
@click.option(
    "--self-signed",
    type=click.Path(file_okay=False, path_type=Path),
    help="For a first try: make a certificate, chain.pem and key.pem, in this folder unless one is there.",
)
@click.option(
    "--run-directory",
    default="/run/nginx",
    show_default=True,
    help="For nginx.conf's process id; nginx does not make it.",
)
@click.option("--access-log", default="/dev/stdout", show_default=True, help="Where nginx logs requests.")
def nginx(
    output: Path, listen: tuple[str, ...], chain: str | None, key: str | None, self_signed: Path | None, **options: Any
) -> None:
    """Write nginx's configuration, so that its allow list and limits say the same as ours.

    Needs server.socket, the unix socket between nginx and the web process. Run it again after a change of
    guard.allowed_networks, and when a model with a longer context has come, then `nginx -s reload`.
    """
    from chatsvc.cli.checks import certificate, nginx_files

    loaded = configuration.load()
    if loaded.server.socket is None:
        raise OperatorError("server.socket is not set: behind nginx the web process listens on a unix socket only.")
    chain, key = _certificate_files(chain, key, self_signed)
    values = render.nginx_values(
        render.NginxOptions(
            listen=listen, certificate=chain, certificate_key=key, socket=str(loaded.server.socket), **options
        ),
        max_body_bytes=_max_chat_bytes(loaded),
        max_chats=2 * loaded.server_threads,
        deadline_s=loaded.chat.deadline_s,
    )
    texts = {name: render.fill_in(_template(name), values) for name in render.TEMPLATES}
    texts[render.ALLOW_LIST] = render.allow_list(loaded.guard.allowed_networks)
    for name, text in texts.items():
        path = output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        click.echo(path)
    if self_signed and (made := certificate.make_unless_there(self_signed, options["server_name"])):
        click.echo(f"{made} (self-signed: for a first try only; browsers will warn)")


def _certificate_files(chain: str | None, key: str | None, self_signed: Path | None) -> tuple[str, str]:
    """The files that were named, else those of ``--self-signed``: absolute, as nginx does not start where we do."""
    from chatsvc.cli.checks import certificate

    if self_signed:
        chain = chain or str((self_signed / certificate.CHAIN).absolute())
        key = key or str((self_signed / certificate.KEY).absolute())
    if not chain or not key:
        raise click.UsageError("Give --certificate and --certificate-key, or --self-signed for a first try.")
    return chain, key


def _max_chat_bytes(loaded: configuration.Settings) -> int:
    """What the web process takes with any model of the store, so that a change of models needs no new file."""
    from chatsvc.errors import ModelRefused
    from chatsvc.http.wire.schema import max_chat_bytes
    from chatsvc.models.store import ModelStore

    if loaded.server.max_body_bytes != "auto":
        return loaded.server.max_body_bytes
    lengths = []
    for folder in ModelStore(loaded.models_directory, loaded.keys_directory).list():
        with contextlib.suppress(ModelRefused):  # it is not served either
            lengths.append(folder.description().context_length)
    return max_chat_bytes(max(lengths, default=None))


def _template(name: str) -> str:
    return resource_path(f"nginx/{name}").read_text(encoding="utf-8")
