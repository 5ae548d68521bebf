"""Starts other Python programs of this installation (pip, the converter) and shows how far they are.

The one place of this room that starts a process; it ends with us, whatever happens. Knows nothing about models.
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

# The child's temporary files go where we can watch them grow. A variable of the environment would do the same, but
# only chatsvc.settings.load reads or sets those.
_WITH_TEMPORARY_FOLDER = (
    "import runpy, sys, tempfile; tempfile.tempdir = sys.argv.pop(1); "
    "sys.argv.pop(0); runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)


def run_module(arguments: Sequence[str], folder: Path, watch: Callable[[int], None]) -> None:
    """Run ``python -m arguments…`` with its temporary files in ``folder``.

    Args:
        arguments: the module and its arguments; never a secret, everybody can read them.
        folder: an empty folder; its size is reported to ``watch`` in bytes, several times a second.
        watch: see above.

    Raises:
        OperatorError: it failed; the message holds its last line.
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
    """Bytes in the folder; files and folders may come and go while we look (os.walk skips what has gone)."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(parent, name)).st_size  # noqa: PTH118  (no object a file: this is polled)
    return total
