"""The command ``chatsvc``: imports a sub-command's module when it is called, and turns errors into exit codes.

Exit codes: 0 success, 1 a check or verification failed, 2 wrong usage, 3 another error. Knows nothing about
what a sub-command does. Importing this module imports no sub-command, so ``chatsvc --help`` is quick.
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

# Each command's module, and the first sentence of its help, so that the list needs no import.
_COMMANDS = {
    "serve": ("service.serve", "Serve: supervise the engine and the web process."),
    "engine": ("service.engine", "Run the engine process alone (`serve` does this for you)."),
    "quickstart": ("service.quickstart", "Make what is missing (keys, administrator, model), then serve: start here."),
    "doctor": ("checks.doctor", "Check this machine and this installation; name each remedy."),
    "status": (
        "service.status",
        "Tell whether the running service serves; its model, queue and audit log.",
    ),
    "chat": ("service.chat", "Chat in the terminal."),
    "user": (
        "accounts.user",
        "Accounts: add, list, find duplicates, disable, remove; change passwords, roles and limits.",
    ),
    "key": ("accounts.key", "API keys and signing keys: create, list, change, rotate, revoke."),
    "token": ("accounts.token", "List login sessions; revoke sessions and tokens."),
    "model": ("models.model", "Models: fetch, import, list, verify, convert, seal, activate."),
    "audit": ("audit.command", "The audit log: verify, show, export, prune; the auditor's keys."),
    "bundle": ("service.bundle", "The kit for machines without a network: build, verify, install, upgrade, rollback."),
    "config": ("checks.config", "Check and show the configuration; write nginx's files."),
    "bench": ("models.bench", "Measure quality; `make bench` in a checkout measures throughput and latency."),
}


class LazyGroup(click.Group):
    """A group that imports a command, called ``command`` in its module, only when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's signature)
        """The commands, in the order a newcomer needs them."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  (click's signature)
        """Import the command's module."""
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"chatsvc.cli.{_COMMANDS[cmd_name][0]}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  (click's signature)
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; an expected error becomes one sentence and an exit code."""
        try:
            return super().invoke(ctx)
        except ChatsvcError as error:
            _say(error.message)
            ctx.exit(EXIT_COULD_NOT)
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of our output is gone: click ends quietly
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


def _say(message: str) -> None:
    click.echo(f"chatsvc: {message}", err=True)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("chatsvc"), prog_name="chatsvc")
def main() -> None:
    """A private, authenticated, audited chat service for a small model on a CPU.

    Start with `chatsvc quickstart`. The directory CHATSVC_HOME (default ./var) holds all data of one service.
    """


if __name__ == "__main__":
    main()
