"""Long work on a terminal and in a pipe."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from chatsvc.cli.output import ShownProgress

WORK = """
from chatsvc.cli.output import ShownProgress
with ShownProgress() as progress:
    for number in range(101):
        progress("hashing model.gguf", number, 100)
    for number in range(5):
        progress("fetching", number, 0)
    progress("empty", 0, 0)
"""


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_pipe_gets_one_line_when_it_begins_and_one_when_it_is_done(environment):
    done = subprocess.run(
        [sys.executable, "-c", WORK], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "hashing model.gguf …",
        "hashing model.gguf: done",
        "fetching …",
        "empty …",
        "fetching: done",
        "empty: done",
    ]


def test_what_failed_is_not_said_to_be_done(capsys):
    progress = ShownProgress()
    progress("copying", 1, 10)
    progress.__exit__(RuntimeError)
    assert capsys.readouterr().err == "copying …\n"


def test_a_terminal_gets_a_bar():
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen([sys.executable, "-c", WORK], stderr=theirs, stdout=theirs, env=environment) as process:
        assert process.wait(30) == 0
    os.close(theirs)
    seen = os.read(ours, 65536).decode()
    os.close(ours)
    assert "hashing model.gguf" in seen
    assert re.search(r"━", seen)
    assert ": done" not in seen
