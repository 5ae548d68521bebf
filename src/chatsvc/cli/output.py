"""Shows how far long work has come: a bar on a terminal; elsewhere one line when it begins and one when it is done."""

from __future__ import annotations

import sys
from typing import Self

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class ShownProgress:
    """A context manager; call it with a text, the work done and all of it (0 where nobody knows).

    Everything goes to standard error, so that standard output is only what a script wants.
    """

    def __init__(self) -> None:
        self._stream = sys.stderr  # as it is now: a library's own chatter is sent elsewhere while we show ours
        console = Console(file=self._stream)
        columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
        # isatty() as well: FORCE_COLOR makes rich take a pipe for a terminal.
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
            for what in self._begun:
                self._say_done(what)

    def __call__(self, what: str, num_done: int, num_total: int) -> None:
        """``num_done`` of ``num_total`` is done."""
        if self._bar:
            if what not in self._tasks:
                self._tasks[what] = self._bar.add_task(what, total=num_total or None)
            self._bar.update(self._tasks[what], completed=num_done)
            return
        if what not in self._begun:
            self._begun.append(what)
            click.echo(f"{what} …", file=self._stream)
        if num_total and num_done >= num_total:
            self._say_done(what)

    def _say_done(self, what: str) -> None:
        if what not in self._done:
            self._done.add(what)
            click.echo(f"{what}: done", file=self._stream)
