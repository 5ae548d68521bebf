"""Smoke test of a model before anything depends on it: a process of its own loads it and asks it one question."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING

from chatsvc.errors import ModelRefused, OperatorError
from chatsvc.settings.load import Settings, child_environment
from chatsvc.wiring import examine_model, model_store

if TYPE_CHECKING:
    from chatsvc.disk.files import Progress
    from chatsvc.models.store import ModelFolder, ModelStore

_POLL_S = 0.1
_MAX_OUTPUT_BYTES = 4096


def testing_store(settings: Settings) -> ModelStore:
    """The model store of a configuration; it takes in only models that pass :func:`smoke_test`."""
    return model_store(settings, lambda folder, progress: smoke_test(settings, folder, progress))


def lacks_key(settings: Settings, folder: ModelFolder) -> bool:
    """Whether the weights are sealed and no key is configured here. The engine's unit may still have one."""
    return folder.description().sealed and settings.models.kek_file is None


def verified(settings: Settings, folder: ModelFolder, *, full: bool, progress: Progress) -> str:
    """``ok``, or why the files differ from the signed manifest or would not be served. Loads no weights."""
    try:
        folder.verify(full=full, progress=progress)
        examine_model(settings, folder)
    except (ModelRefused, OperatorError) as error:
        return error.message
    return "ok"


def smoke_test(settings: Settings, folder: ModelFolder, progress: Progress) -> None:
    """Load the model with the runner that would serve it, in a process of its own, and let it answer.

    Sealed weights without a key here are examined but not loaded.

    Raises:
        OperatorError: it would not be served; the message says why.
    """
    if lacks_key(settings, folder):
        examine_model(settings, folder)
        return
    command = [sys.executable, "-m", "chatsvc.cli.models.smoke_test_process", str(folder.path), folder.name]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(  # noqa: S603  no shell, our own interpreter
            command,
            env=child_environment({"CHATSVC_HOME": str(settings.home)}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.DEVNULL,
        )
        _wait(process, settings.engine.load_timeout_s, progress)
        output.seek(max(0, output.seek(0, os.SEEK_END) - _MAX_OUTPUT_BYTES))
        _require_success(process.returncode, output.read())


def _wait(process: subprocess.Popen[bytes], limit_s: float, progress: Progress) -> None:
    deadline = time.monotonic() + limit_s
    progress("loading the model and having it answer", 0, 1)
    try:
        while process.poll() is None:
            if time.monotonic() > deadline:
                raise OperatorError(
                    f"The model did not load and answer within engine.load_timeout_s = {limit_s:g} s. Use a smaller "
                    "model, or raise engine.load_timeout_s."
                )
            time.sleep(_POLL_S)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    progress("loading the model and having it answer", 1, 1)


def _require_success(code: int, output: bytes) -> None:
    if code == 0:
        return
    if code < 0:
        raise OperatorError(
            f"The process that loads the model was ended by signal {-code}: there may be too little memory for it "
            "(engine.memory_limit_mb), or its files crash the runner. Use another file of the model."
        )
    lines = output.decode("utf-8", errors="replace").strip().splitlines()
    raise OperatorError(lines[-1] if lines else "The model cannot be loaded.")
