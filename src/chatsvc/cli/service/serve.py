"""``chatsvc serve``: the engine and the web process under one supervisor."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from chatsvc.errors import OperatorError
from chatsvc.settings.load import Settings, child_environment, load
from chatsvc.supervisor.child import Command
from chatsvc.wiring import model_store

if TYPE_CHECKING:
    from chatsvc.models.store import ModelFolder

_log = logging.getLogger(__name__)

_DRAIN_MARGIN_S = 10
_ENGINE_SECTIONS = frozenset({"SERVER", "CHAT", "ENGINE", "LIMITS", "MODELS", "LOGS"})


@click.command("serve")
@click.option("--only", type=click.Choice(["web"]), help="Run the web process alone; another unit runs the engine.")
def command(only: str | None) -> None:
    """Serve: supervise the engine and the web process.

    SIGTERM drains, then ends. SIGHUP switches to the active model.
    """
    from chatsvc import logs
    from chatsvc.cli.checks import start_checks
    from chatsvc.disk import pidfile

    settings = load()
    start_checks.require(settings)
    logs.configure(settings.logs.level)
    for warning in start_checks.warnings(settings):
        _log.warning("%s", warning)
    make_home(settings)
    if only == "web":
        _become_the_web_process(settings)
    active_model(settings)
    with pidfile.hold(settings.home):
        require_free_port(settings)
        raise click.exceptions.Exit(supervise(settings, on_ready=lambda: None, log_directory=None))


def active_model(settings: Settings) -> ModelFolder:
    """The active model.

    Raises:
        OperatorError: no model is active; the message says how to get one.
    """
    store = model_store(settings)
    if (active := store.active()) is not None:
        return active
    if there := [folder.name for folder in store.list()]:
        raise OperatorError(f"No model is active: choose one with `chatsvc model activate NAME` ({', '.join(there)}).")
    raise OperatorError(
        "No model is active, and the store has none. `chatsvc model import --embedded --activate` imports a small one "
        "to try, `chatsvc model fetch qwen/Qwen1.5-0.5B-Chat --activate` fetches one from ModelScope, and "
        "`chatsvc model import FILE.gguf --activate` imports a file."
    )


def require_free_port(settings: Settings) -> None:
    """Check that the address can be listened on, because gunicorn would retry five times before it says so.

    Raises:
        OperatorError: another process listens there, or this machine has no such address.
    """
    if settings.server.socket:
        return
    host, port = settings.server.host, settings.server.port
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        raise OperatorError(
            f"Cannot listen on {host} port {port} ({error.strerror}): choose another by server.host and server.port, "
            "or by HOST and PORT for `make run`."
        ) from None


def make_home(settings: Settings) -> None:
    """Make the directories that every process needs, private to this account."""
    for directory in (settings.home, settings.home / "run", settings.keys_directory, settings.engine_socket.parent):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)


def supervise(settings: Settings, *, on_ready: Callable[[], None], log_directory: Path | None) -> int:
    """Run until told to stop; returns the exit code."""
    from chatsvc.supervisor import cgroup, probe
    from chatsvc.supervisor.supervisor import Processes, Supervisor

    processes = Processes(
        engine=engine_command(settings, log_directory),
        web=web_command(settings, log_directory),
        engine_socket=settings.engine_socket,
        drain_timeout_s=settings.server.drain_timeout_s,
        stall_timeout_s=settings.engine.stall_timeout_s,
        answers=lambda: probe.answers(settings),
        on_ready=on_ready,
        two_engines_fit=cgroup.two_fit,
    )
    return Supervisor(processes).run()


def engine_command(settings: Settings, log_directory: Path | None) -> Command:
    """How to start the engine: only with the variables that it reads, so without the web process's secrets.

    Its drain limit is the longest that a generation may take. At a model swap there is no deadline; when the service
    ends, the supervisor enforces its own.
    """
    limit_s = max(settings.chat.deadline_s, settings.server.drain_timeout_s) + _DRAIN_MARGIN_S
    additions = {"CHATSVC_HOME": str(settings.home), "CHATSVC_SERVER__DRAIN_TIMEOUT_S": str(limit_s)}
    environment = child_environment(additions)
    return Command(
        name="engine",
        arguments=[sys.executable, "-m", "chatsvc.cli.main", "engine"],
        environment={name: value for name, value in environment.items() if _is_for_the_engine(name)},
        log=log_directory / "engine.log" if log_directory else None,
    )


def _is_for_the_engine(name: str) -> bool:
    """Whether a variable belongs to a section that the engine reads, or is none of the service's keys."""
    section, separator, _ = name.upper().removeprefix("CHATSVC_").partition("__")
    return not name.upper().startswith("CHATSVC_") or not separator or section in _ENGINE_SECTIONS


def web_command(settings: Settings, log_directory: Path | None) -> Command:
    """How to start the web process."""
    return Command(
        name="web",
        arguments=_web_arguments(),
        environment=_web_environment(settings),
        death_signal=signal.SIGQUIT,
        log=log_directory / "web.log" if log_directory else None,
    )


def _web_arguments() -> list[str]:
    from chatsvc.resources import resource_path

    return [sys.executable, "-m", "gunicorn", "-c", str(resource_path("config/gunicorn.conf.py"))]


def _web_environment(settings: Settings) -> dict[str, str]:
    listening = {"CHATSVC_SERVER__HOST": settings.server.host, "CHATSVC_SERVER__PORT": str(settings.server.port)}
    return child_environment({**listening, "CHATSVC_HOME": str(settings.home)})


def _become_the_web_process(settings: Settings) -> NoReturn:
    os.execve(sys.executable, _web_arguments(), _web_environment(settings))  # noqa: S606  (our own program, no shell)
