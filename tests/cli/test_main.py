"""The command: its sub-commands, its version, its exit codes."""

from __future__ import annotations

import errno
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from chatsvc.cli.main import LazyGroup, main
from chatsvc.errors import ConfigurationInvalid, OperatorError, StoreUnavailable


def run(*arguments: str):
    return CliRunner().invoke(main, list(arguments))


def failing(error: BaseException):
    """A group with one command that raises."""

    @click.group(cls=LazyGroup)
    def group() -> None:
        pass

    def command() -> None:
        raise error

    group.get_command = lambda _context, _name: click.Command("fail", callback=command)
    return CliRunner().invoke(group, ["fail"])


def test_every_command_of_the_contract_is_there() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for name in [
        "serve",
        "engine",
        "quickstart",
        "doctor",
        "status",
        "chat",
        "user",
        "key",
        "token",
        "model",
        "audit",
        "bundle",
        "config",
        "bench",
    ]:
        assert f"  {name} " in result.output, name


def test_help_imports_no_command() -> None:
    code = (
        "import sys; from chatsvc.cli.main import main; main(['--help'], standalone_mode=False); "
        "sys.exit(any(name.startswith('chatsvc.cli.') and name != 'chatsvc.cli.main' for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_the_version_is_told() -> None:
    assert run("--version").output.startswith("chatsvc, version ")


def test_an_unknown_command_is_wrong_usage() -> None:
    assert run("nothing").exit_code == 2


def paths_of(command: click.Command, *path: str):
    """Every command and sub-command."""
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from paths_of(command.get_command(context, name), *path, name)


def test_the_list_of_commands_says_what_each_command_says_of_itself() -> None:
    context = click.Context(main)
    listed = " ".join(run("--help").stdout.split())
    for name in main.list_commands(context):
        own = (main.get_command(context, name).help or "").split("\n\n")[0]
        assert f"{name} {' '.join(own.split())}" in listed


def test_every_command_has_help_in_plain_text() -> None:
    paths = list(paths_of(main))
    assert ("audit", "verify") in paths
    for path in paths:
        result = run(*path, "--help")
        assert result.exit_code == 0, result.output
        assert "\\" not in result.output, path  # an escape of the docstring that was left as it stands
        assert all(char.isprintable() or char == "\n" for char in result.output), path


@pytest.mark.parametrize(
    "error",
    [
        OperatorError("Mend it so."),
        StoreUnavailable("Mend it so."),
        click.FileError("x", "Mend it so."),
        OSError("Mend it so."),
    ],
)
def test_what_could_not_be_done_is_one_sentence_and_code_3(error: BaseException) -> None:
    result = failing(error)
    assert result.exit_code == 3
    assert "Mend it so." in result.stderr
    assert "Traceback" not in result.stderr


def test_a_file_that_cannot_be_opened_is_named() -> None:
    result = failing(PermissionError(errno.EACCES, "Permission denied", "/x/y"))
    assert result.exit_code == 3
    assert result.stderr == "chatsvc: /x/y: Permission denied\n"


def test_every_problem_of_a_configuration_is_told() -> None:
    result = failing(ConfigurationInvalid(["one", "two"]))
    assert result.exit_code == 3
    assert "  - one\n  - two" in result.stderr


def test_an_interrupt_is_what_shells_expect() -> None:
    assert failing(KeyboardInterrupt()).exit_code == 130


def test_a_reader_that_went_away_is_no_error_of_ours() -> None:
    assert "Errno" not in failing(BrokenPipeError(errno.EPIPE, "Broken pipe")).stderr


def test_wrong_usage_of_a_command_is_code_2() -> None:
    assert failing(click.BadParameter("no")).exit_code == 2
