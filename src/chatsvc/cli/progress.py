"""Shows how far long work has come: a bar on a terminal, a plain line about every tenth of the way elsewhere."""

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
        self._bar = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self._tasks: dict[str, TaskID] = {}
        self._told: dict[str, int] = {}

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, what: str, num_done: int, num_total: int) -> None:
        """``num_done`` of ``num_total`` is done."""
        if self._bar:
            if what not in self._tasks:
                self._tasks[what] = self._bar.add_task(what, total=num_total or None)
            self._bar.update(self._tasks[what], completed=num_done)
            return
        tenth = num_done * 10 // num_total if num_total else 0
        if tenth > self._told.get(what, -1):
            self._told[what] = tenth
            click.echo(f"{what}: {tenth * 10} %" if num_total else f"{what} …", file=self._stream)
