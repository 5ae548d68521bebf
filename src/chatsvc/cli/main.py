"""The command ``chatsvc``: finds a sub-command's module when it is asked for, and turns errors into exit codes.

Exit codes: 0 done, 1 the answer is no (a verification failed), 2 wrong usage, 3 could not do it. Knows nothing about
what a sub-command does; importing this module imports none of them, so ``chatsvc --help`` is quick.
"""

from __future__ import annotations

import errno
import importlib
from importlib.metadata import version
from typing import Any

import click

from chatsvc.errors import ChatsvcError

EXIT_COULD_NOT = 3
_EXIT_INTERRUPTED = 130  # 128 + SIGINT, what shells expect

_COMMANDS = {
    "serve": "Serve: supervise the engine and the web processes.",
    "engine": "Run the engine process alone (what `serve` does for you).",
    "quickstart": "Make what is missing (keys, administrator, model), then serve: the first thing to try.",
    "doctor": "Check this machine and this installation; name each remedy.",
    "chat": "Chat in the terminal.",
    "user": "Accounts: add, list, find doubled ones, disable, change passwords, roles and limits.",
    "key": "API keys and signing keys: create, list, change, rotate, revoke.",
    "token": "Revoke tokens and sessions; list who is logged in.",
    "model": "Models: fetch, import, list, verify, convert, seal, activate.",
    "audit": "The audit log: verify, show, export, prune; the auditor's keys.",
    "bundle": "The kit for machines without a network: build, verify, install, upgrade, rollback.",
    "config": "Check and show the configuration; write nginx's files.",
    "bench": "Measure quality; `make bench` in a checkout measures throughput and latency.",
}


_MODULES = {
    "serve": "service.serve",
    "engine": "service.engine",
    "quickstart": "service.quickstart",
    "doctor": "checks.doctor",
    "chat": "service.chat",
    "user": "accounts.user",
    "key": "accounts.key",
    "token": "accounts.token",
    "model": "models.model",
    "audit": "audit.command",
    "bundle": "service.bundle",
    "config": "checks.config",
    "bench": "models.bench",
}


class LazyGroup(click.Group):
    """A group whose commands are each called ``command`` in the module that ``_MODULES`` names."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's signature)
        """The commands, in the order a newcomer needs them."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  (click's signature)
        """Import the command's module."""
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(_module_name(cmd_name)).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _COMMANDS[name]) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what it raises on purpose becomes one sentence and an exit code."""
        try:
            return super().invoke(ctx)
        except ChatsvcError as error:
            _say(error.message)
            ctx.exit(EXIT_COULD_NOT)
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of our output went away: click ends quietly
                raise
            _say(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
            ctx.exit(EXIT_COULD_NOT)
        except click.UsageError:
            raise
        except click.ClickException as error:
            error.show()
            ctx.exit(EXIT_COULD_NOT)
        except KeyboardInterrupt:
            ctx.exit(_EXIT_INTERRUPTED)


def _module_name(command_name: str) -> str:
    return f"chatsvc.cli.{_MODULES[command_name]}"


def _say(message: str) -> None:
    click.echo(f"chatsvc: {message}", err=True)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("chatsvc"), prog_name="chatsvc")
def main() -> None:
    """A private, authenticated, audited chat service for a small model on a CPU.

    Start with `chatsvc quickstart`. Everything below CHATSVC_HOME (./var when it is not set) belongs to one service.
    """


if __name__ == "__main__":
    main()
