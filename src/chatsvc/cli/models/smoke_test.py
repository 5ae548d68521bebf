"""Lets a model show that it will be served before anything depends on it, and makes it the active one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING

from chatsvc.cli.audit.recording import recorded
from chatsvc.errors import ModelRefused, OperatorError
from chatsvc.settings.load import Settings, child_environment
from chatsvc.wiring import examine_model

if TYPE_CHECKING:
    from chatsvc.disk.files import Progress
    from chatsvc.models.store import ModelFolder, ModelStore

_POLL_S = 0.1
_MAX_OUTPUT_BYTES = 4096
_NOT_LOADED = (
    "It is sealed, and models.kek_file is not set here, so whether it loads was not tried: the engine needs the key."
)
# No library may look for a network while it loads a model.
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}


def store_of(settings: Settings, *, is_tried: bool = True) -> ModelStore:
    """The store of a configuration; with ``is_tried`` a model comes in only when :func:`try_model` lets it."""
    from chatsvc.models.store import ModelStore

    trial = (lambda folder, progress: try_model(settings, folder, progress)) if is_tried else None
    return ModelStore(settings.models_directory, settings.keys_directory, settings.models.kek_file, trial)


def lacks_key(settings: Settings, folder: ModelFolder) -> bool:
    """Whether the weights are sealed and no key is configured here. The engine's unit may have one all the same."""
    return folder.description().sealed and settings.models.kek_file is None


def try_model(settings: Settings, folder: ModelFolder, progress: Progress) -> None:
    """Load the model in a process of its own with the runner that would serve it, and have it answer.

    Sealed weights without a key here are only looked at: the engine may get the key by another way.

    Raises:
        OperatorError: it would not be served; the message says why.
    """
    if lacks_key(settings, folder):
        examine_model(settings, folder)
        return
    command = [sys.executable, "-m", "chatsvc.cli.models.smoke_test_process", str(folder.path), folder.name]
    additions = {**_OFFLINE, "CHATSVC_HOME": str(settings.home)}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(  # noqa: S603  no shell, our own interpreter
            command,
            env=child_environment(additions),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.DEVNULL,
        )
        _wait(process, settings.engine.load_timeout_s, progress)
        said.seek(max(0, said.seek(0, os.SEEK_END) - _MAX_OUTPUT_BYTES))
        _judge(process.returncode, said.read())


def activate(
    settings: Settings, store: ModelStore, name: str, version: str | None = None, *, is_tried: bool = False
) -> str:
    """Make it the model that is served, tell whoever serves; what to say about it.

    Raises:
        OperatorError: it would not be served, or is older than the active one and ``version`` does not name it.
    """
    from chatsvc.cli.output import ShownProgress
    from chatsvc.disk.pidfile import tell_to_swap

    folder = store.get(name)
    refusal: OperatorError | None = None
    if not is_tried:
        try:
            with ShownProgress() as progress:
                folder.verify()
                try_model(settings, folder, progress)
        except OperatorError as error:
            refusal = error
    # The record is short: nobody else can write to the log meanwhile.
    details: dict[str, object] = {"before": _active_name(store), "after": name}
    if version is not None:
        details["version"] = version
    with recorded(settings, "admin.model.activate", details):
        if refusal is not None:
            raise refusal
        details["digest"] = store.activate(name, version).card().digest
    hint = f"\n{_NOT_LOADED}" if lacks_key(settings, folder) else ""
    if tell_to_swap(settings.home):
        return f"{name} is active. The running service brings it up now; nobody is interrupted.{hint}"
    return f"{name} is active from the next start of the engine.{hint}"


def _wait(process: subprocess.Popen[bytes], limit_s: float, progress: Progress) -> None:
    deadline = time.monotonic() + limit_s
    progress("loading the model and having it answer", 0, 1)
    try:
        while process.poll() is None:
            if time.monotonic() > deadline:
                raise OperatorError(
                    f"The model did not load and answer within engine.load_timeout_s = {limit_s:g} s. Use a smaller "
                    "one, or raise that."
                )
            time.sleep(_POLL_S)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    progress("loading the model and having it answer", 1, 1)


def _judge(code: int, said: bytes) -> None:
    if code == 0:
        return
    lines = said.decode("utf-8", errors="replace").strip().splitlines()
    if code < 0:
        raise OperatorError(
            f"The process that loads the model was ended by signal {-code}: there may be too little memory for it "
            "(engine.memory_limit_mb), or its files crash the runner. Use another file of the model."
        )
    raise OperatorError(lines[-1] if lines else "The model cannot be loaded.")


def _active_name(store: ModelStore) -> str | None:
    link = store.root / "current"
    return link.readlink().name if link.is_symlink() else None


def verified(settings: Settings, folder: ModelFolder, *, full: bool, progress: Progress) -> str:
    """``ok``, or why it is not as signed or would not be served."""
    try:
        folder.verify(full=full, progress=progress)
        examine_model(settings, folder)
    except (ModelRefused, OperatorError) as error:
        return error.message
    return "ok"
