"""Writes the pages that are made from the code into docs/reference. A test compares them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import http_reference

from chatsvc.cli.main import main
from chatsvc.engine.runners.choice import OPENVINO_GGUF_ARCHITECTURES
from chatsvc.models.formats.architectures import ALL, Architecture

_ROOT = Path(__file__).resolve().parent.parent
_DOCS = _ROOT / "docs" / "reference"
_WIDTH = 100
_COMMAND_LINE = """\
# The command line

Made by `make docs` from the program itself; a test compares them.
Exit codes: 0 success, 1 a check or verification failed, 2 wrong usage, 3 another error.
`chatsvc audit verify` has more: see [the audit format](audit-format.md).
"""
_CONFIGURATION = """\
# Configuration

Made by `make docs` from `config/chatsvc.toml`; tests compare both pages, and that file with the defaults.

## Where a value comes from

The first of these that is set wins:

1. the environment, `CHATSVC_SECTION__KEY`; lists and tables as JSON, such as
   `CHATSVC_GUARD__ALLOWED_NETWORKS='["10.0.0.0/8"]'`; a variable that is empty counts as not set
2. for a secret also `CHATSVC_SECTION__KEY_FILE`, the path of a file that holds it; giving both is an error
3. the file that `CHATSVC_CONFIG` names, else `$CHATSVC_HOME/chatsvc.toml` if it exists
4. the default

`CHATSVC_HOME` (default `./var`) is read from the environment only. `make run` and `chatsvc quickstart` also take
`PORT` and `HOST`, which stand for `server.port` and `server.host`.

## What is checked

`chatsvc config check` names every problem at once; no program of the service starts with one. An unknown section or key
is a problem, in the file and in the environment, so a typo cannot leave a limit at its default. Values that are valid
alone but not together (a refresh token that expires before an access token, fewer threads than requests may wait) are
refused too. `chatsvc config show` prints the values in force with secrets masked; `chatsvc config nginx` writes nginx's
files, so that its allow list and limits are the same as ours.

No key turns authentication, the allow list or the audit log off.

## Every key

```toml
"""
_TABLE_BEGINS = "<!-- The table is made by `make docs` from src/chatsvc/models/formats/architectures.py -->\n\n"
_TABLE_ENDS = "\n<!-- end of the table -->\n"
_TABLE_HEAD = """\
| models | `model_type` | GGUF architecture | GGUF split | native | OpenVINO | torch | what differs from Llama |
|---|---|---|---|---|---|---|---|
"""
_WINDOWS = {
    "switched": "a sliding window if `use_sliding_window` is set",
    "always": "a sliding window if `sliding_window` is set",
}


def pages() -> dict[Path, str]:
    """Every page and its text."""
    return {
        _DOCS / "cli.md": _command_line(),
        _DOCS / "configuration.md": _configuration(),
        _DOCS / "http.md": http_reference.page(),
        _DOCS / "models.md": _models(),
    }


def _configuration() -> str:
    return f"{_CONFIGURATION}{(_ROOT / 'config' / 'chatsvc.toml').read_text(encoding='utf-8')}```\n"


def _models() -> str:
    """The page as it is, with the table of architectures between its two comments made anew."""
    before, _, rest = (_DOCS / "models.md").read_text(encoding="utf-8").partition(_TABLE_BEGINS)
    _, _, after = rest.partition(_TABLE_ENDS)
    return f"{before}{_TABLE_BEGINS}{_TABLE_HEAD}{''.join(map(_row, ALL))}{_TABLE_ENDS}{after}"


def _row(one: Architecture) -> str:
    openvino = "GGUF" if one.gguf in OPENVINO_GGUF_ARCHITECTURES else "–"
    splits = ", ".join(f"`{name}`" for name in one.splits)
    notes = [
        *(["a norm of each query and key head"] if one.has_qk_norm else []),
        *([f"no rotary embedding in every {one.no_rope_interval}th layer"] if one.no_rope_interval else []),
        *([_WINDOWS[one.window]] if one.window != "none" else []),
    ]
    return (
        f"| {one.models} | `{one.model_type}` | `{one.gguf}` | {splits} | GGUF, safetensors | {openvino} | safetensors "
        f"| {'; '.join(notes) or '–'} |\n"
    )


def _command_line() -> str:
    parts = [f"## `{path}`\n\n```\n{text.rstrip()}\n```\n" for path, text in _commands(main, "chatsvc", None)]
    return "\n".join([_COMMAND_LINE, *parts])


def _commands(command: click.Command, path: str, parent: click.Context | None) -> Iterator[tuple[str, str]]:
    """Every command with its help text, a group before its members."""
    context = click.Context(command, info_name=path.rpartition(" ")[2], parent=parent, terminal_width=_WIDTH)
    yield path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            member = command.get_command(context, name)
            if member is not None and not member.hidden:
                yield from _commands(member, f"{path} {name}", context)


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
