"""Runs other Python programs of this installation (pip, the converter) with progress.

The child is killed when this process leaves the call for any reason. Knows nothing about models.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from chatsvc.errors import OperatorError

_POLL_S = 0.25
_KEPT_OUTPUT_CHARS = 300

# The child's temporary files go to a folder whose growth is the progress. TMPDIR would do the same, but only
# chatsvc.settings touches the environment.
_WITH_TEMPORARY_FOLDER = (
    "import runpy, sys, tempfile; tempfile.tempdir = sys.argv.pop(1); "
    "sys.argv.pop(0); runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)


def run_module(arguments: Sequence[str], folder: Path, watch: Callable[[int], None]) -> None:
    """Run ``python -m arguments…`` with its temporary files in ``folder``.

    Args:
        arguments: the module and its arguments; no secrets, as /proc shows them.
        folder: an empty folder for temporary files.
        watch: called with the folder's size in bytes, several times a second.

    Raises:
        OperatorError: it failed; the message holds its last line of output.
    """
    command = [sys.executable, "-c", _WITH_TEMPORARY_FOLDER, str(folder), *arguments]
    log = folder / ".output"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)  # noqa: S603  no shell, our own interpreter
        try:
            while process.poll() is None:
                watch(_size(folder))
                _wait(process)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
    log.unlink()
    if process.returncode != 0:
        raise OperatorError(f"{arguments[0]} failed: {said[-1][:_KEPT_OUTPUT_CHARS]}")


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_POLL_S)
    except subprocess.TimeoutExpired:
        return


def _size(folder: Path) -> int:
    """The folder's size in bytes. Files may vanish meanwhile (os.walk skips vanished folders)."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(parent, name)).st_size  # noqa: PTH118  (polled: no Path object per file)
    return total
