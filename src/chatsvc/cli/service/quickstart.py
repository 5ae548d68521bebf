"""``chatsvc quickstart`` (``make run``): makes what is missing, serves, and prints how to try it.

It makes, below CHATSVC_HOME: chatsvc.toml, which lets only this machine connect; an administrator named ``admin``
with a random password; the embedded model. What exists already stays as it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from chatsvc.cli.service.serve import make_home, require_free_port, supervise
from chatsvc.disk.durable import rename, write_file
from chatsvc.errors import Conflict, OperatorError
from chatsvc.settings.load import Settings, environment_value
from chatsvc.wiring import model_store

if TYPE_CHECKING:
    from chatsvc.models.store import ModelStore

_ADMIN = "admin"
_PASSWORD_BYTES = 24
_MAX_LOG_BYTES = 16 * 1024 * 1024
_TAIL_LINES = 5
_QUESTION = "What is the capital of France?"
_CONFIGURATION = """\
# Made by `chatsvc quickstart`. config/chatsvc.toml documents every key and its default.

[guard]
# Who may connect: only this machine, until you add the networks of your clients.
allowed_networks = ["127.0.0.0/8", "::1/128"]
"""


@click.command("quickstart")
@click.option("--prepare-only", is_flag=True, help="Make what is missing, then end without serving.")
@click.option("--model", help="Serve this one: a name of `chatsvc model fetch`, a ModelScope id, a file or a folder.")
def command(prepare_only: bool, model: str | None) -> None:
    """Make what is missing (keys, administrator, model), then serve: start here.

    Honours PORT (8080), HOST (127.0.0.1) and CHATSVC_HOME (./var).
    """
    from chatsvc import logs
    from chatsvc.cli.checks import start_checks
    from chatsvc.disk import pidfile

    os.umask(0o077)
    with _quiet_end():
        settings = _settings()
        if prepare_only:
            start_checks.require(settings)
            prepare(settings, model)
            return
        if settings.server.socket:
            raise OperatorError(
                "server.socket is set: quickstart listens on HOST and PORT; use `chatsvc serve` behind nginx."
            )
        log_directory = settings.home / "logs"
        log_directory.mkdir(mode=0o700, exist_ok=True)
        for log in log_directory.glob("*.log"):
            _rotate(log)
        start_checks.require(settings)
        for warning in start_checks.warnings(settings):
            click.echo(f"Warning: {warning}", err=True)
        with pidfile.hold(settings.home), (log_directory / "serve.log").open("a", encoding="utf-8") as stream:
            logs.configure(settings.logs.level, stream)
            require_free_port(settings)
            prepare(settings, model)
            click.echo("Starting the engine and the web process …")
            code = supervise(settings, on_ready=lambda: click.echo(welcome(settings)), log_directory=log_directory)
    if code:
        _show_what_failed(log_directory)
    raise click.exceptions.Exit(code)


@contextlib.contextmanager
def _quiet_end() -> Iterator[None]:
    """A signal to stop before the supervisor takes over ends with exit code 0."""

    def stop(*_: object) -> None:
        raise SystemExit(0)

    before = [(number, signal.signal(number, stop)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _settings() -> Settings:
    """The configuration, with PORT and HOST as `make run` passes them. Makes the home first."""
    home = Path(environment_value("CHATSVC_HOME") or "var").absolute()
    if not home.exists():
        home.mkdir(mode=0o700, parents=True)
    configuration = home / "chatsvc.toml"
    if not configuration.exists() and not environment_value("CHATSVC_CONFIG"):
        configuration.write_text(_CONFIGURATION, encoding="utf-8")
        click.echo(f"Wrote {configuration}: only this machine may connect.")
    from chatsvc.supervisor.address import settings_as_run

    return settings_as_run()


def prepare(settings: Settings, model: str | None = None) -> None:
    """Make what is missing: the home, an active model (``model``, if it is named), the administrator."""
    make_home(settings)
    store = model_store(settings)
    if model or store.active() is None:
        _activate_model(settings, store, model)
    _make_administrator(settings)


def _activate_model(settings: Settings, store: ModelStore, model: str | None) -> None:
    """Import and activate a model, by default the embedded one, with records as `chatsvc model` makes them."""
    from chatsvc.cli.audit.recording import recorded
    from chatsvc.cli.models.importing import ensure
    from chatsvc.models.supply import packaged
    from chatsvc.models.supply.known import EMBEDDED

    if model is None and packaged.find(store, EMBEDDED) is None:
        click.echo("Importing the embedded model (SmolLM2-135M-Instruct, 98 MB, only the first time) …")
    folder, before = ensure(settings, model or EMBEDDED.name), store.active()
    if before is not None and before.name == folder.name:
        return
    details: dict[str, object] = {"before": before.name if before else None, "after": folder.name}
    with recorded(settings, "admin.model.activate", details):
        details["digest"] = store.activate(folder.name).card().digest


def _make_administrator(settings: Settings) -> None:
    """Make the first account; its password is written once, into a file that only this account can read."""
    from chatsvc.cli.accounts.user import command as user

    password_file = settings.home / "admin-password"
    if password_file.exists():
        return
    unconfirmed = settings.home / ".admin-password.new"
    unconfirmed.unlink(missing_ok=True)
    write_file(unconfirmed, f"{secrets.token_urlsafe(_PASSWORD_BYTES)}\n".encode("ascii"), 0o400)
    arguments = ["add", _ADMIN, "--role", "admin", "--password-file", str(unconfirmed)]
    try:
        with contextlib.redirect_stdout(None):
            user.main(arguments, prog_name="chatsvc user", standalone_mode=False)
    except Conflict:  # the account exists, and its password file was removed, as it should be
        unconfirmed.unlink()
        return
    rename(unconfirmed, password_file)
    click.echo(f"Made the administrator '{_ADMIN}'; the password is in {password_file}.")


def welcome(settings: Settings) -> str:
    """The address, and a command that works when pasted. It passes the password in no process's arguments."""
    from chatsvc.supervisor.address import address_of

    url = address_of(settings)
    password_file = shlex.quote(str(settings.home / "admin-password"))
    json_header = "-H 'Content-Type: application/json'"
    login = (
        f"""printf '{{"username":"{_ADMIN}","password":"%s"}}' "$(cat {password_file})" """
        f"""| curl -s {url}/login {json_header} -d @- """
        """| sed 's/.*"access_token": *"\\([^"]*\\)".*/\\1/'"""
    )
    question = json.dumps({"query": _QUESTION, "temperature": 0})
    return (
        f"\nchatsvc is ready at {url} (the chat page; log in as '{_ADMIN}' with the password in {password_file})\n"
        f"\nTry it:\n\n"
        f"""curl -sN {url}/chat/stream -H "Authorization: Bearer $({login})" {json_header} -d '{question}'\n"""
        f"{_about_the_model(settings)}"
        f"{_about_the_seal(settings)}"
        f"\nCtrl-C stops the service. Logs are in {settings.home / 'logs'}.\n"
    )


def _about_the_model(settings: Settings) -> str:
    """What is served, and how to serve one's own model instead."""
    from chatsvc.models.supply.known import MODELS

    active = model_store(settings).active()
    if active is None:
        return ""
    known = MODELS.get(active.name)
    languages = f" ({', '.join(known.languages)})" if known else ""
    return (
        f"\nIt serves {active.name}{languages}. For another model stop it and run `make run MODEL=…` (or `chatsvc\n"
        "quickstart --model …`) with a name that `chatsvc model fetch` lists, a ModelScope id such as\n"
        "qwen/Qwen1.5-0.5B-Chat, a GGUF file or a folder.\n"
    )


def _about_the_seal(settings: Settings) -> str:
    """How to take the audit log's first sealing key off this machine; empty once that is done."""
    from chatsvc.audit.keys import initial_seals

    waiting = initial_seals(settings.keys_directory)
    if not waiting:
        return ""
    return (
        f"\nThe audit log's first sealing key is in {waiting[0].parent}. As long as it stays here, an attacker who\n"
        "takes over the machine can rewrite the log. `chatsvc audit seal-key --output DIR` moves it to a disk for the\n"
        "auditor, `chatsvc audit seal-key --drop` destroys it.\n"
    )


def _rotate(log: Path) -> None:
    if log.stat().st_size > _MAX_LOG_BYTES:
        rename(log, log.with_suffix(".log.1"))


def _show_what_failed(log_directory: Path) -> None:
    """Print the last lines of each log: the remedy is usually among them."""
    for log in sorted(log_directory.glob("*.log")):
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]:
            click.echo(f"{log.name}: {_message(line)}", err=True)
    click.echo(f"chatsvc: could not start; above are the last lines of the logs in {log_directory}.", err=True)


def _message(line: str) -> str:
    try:
        fields = json.loads(line)
    except ValueError:
        return line
    return str(fields.get("message", line)) if isinstance(fields, dict) else line
