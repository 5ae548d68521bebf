"""What commands print: results as text or JSON, tables, and the progress of long work.

Results go to standard output and everything else to standard error, so a script can read the results alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Self

import click

if TYPE_CHECKING:
    from rich.progress import TaskID

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_json(value: object) -> None:
    """One line of JSON."""
    click.echo(json.dumps(value, ensure_ascii=False))


def print_result(value: object, sentence: str, *, as_json: bool) -> None:
    """The value as JSON, or the sentence that says the same to a person."""
    click.echo(json.dumps(value, ensure_ascii=False) if as_json else sentence)


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A header and the rows, columns separated by tabs; nothing if there are no rows."""
    lines = ["\t".join(row) for row in rows]
    if lines:
        click.echo("\n".join(["\t".join(header), *lines]))


class ShownProgress:
    """A progress bar on a terminal; elsewhere one line when work begins and one when it is done.

    A context manager. Call it with a label, the amount done and the total (0 if unknown).
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        self._stream = sys.stderr  # bound now: while a library's own output is redirected, ours must not be
        console = Console(file=self._stream)
        columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
        # isatty() as well: with FORCE_COLOR set, rich takes a pipe for a terminal.
        can_move = self._stream.isatty() and console.is_terminal and not console.is_dumb_terminal
        self._bar = Progress(*columns, console=console, transient=True) if can_move else None
        self._tasks: dict[str, TaskID] = {}
        self._begun: list[str] = []
        self._done: set[str] = set()

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if self._bar:
            self._bar.stop()
        elif failed is None:
            for label in self._begun:
                self._say_done(label)

    def __call__(self, label: str, num_done: int, num_total: int) -> None:
        """Show that ``num_done`` of ``num_total`` is done."""
        if self._bar:
            if label not in self._tasks:
                self._tasks[label] = self._bar.add_task(label, total=num_total or None)
            self._bar.update(self._tasks[label], completed=num_done)
            return
        if label not in self._begun:
            self._begun.append(label)
            click.echo(f"{label} …", file=self._stream)
        if num_total and num_done >= num_total:
            self._say_done(label)

    def _say_done(self, label: str) -> None:
        if label not in self._done:
            self._done.add(label)
            click.echo(f"{label}: done", file=self._stream)
