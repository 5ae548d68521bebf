"""Seals a model of the store in place, checks a sealed one, and rotates its key.

Sealing builds a sealed folder beside the plain one, unseals it as a check, exchanges the two atomically, then
overwrites and removes the plain one. At every moment the name refers to one complete model. A crash leaves at most a
``.sealing-…`` folder, which the next of these commands destroys. Overwriting does not reach copies that a solid-state
disk or a snapshot keeps: store models on an encrypted disk even before sealing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from chatsvc.disk.durable import copy_file, erase, exchange, sync_directory, write_file
from chatsvc.disk.files import PRIVATE_FOLDER, Progress, no_progress
from chatsvc.errors import OperatorError
from chatsvc.models import manifest
from chatsvc.models.description import DESCRIPTION_FILE, ModelDescription
from chatsvc.models.seal import unsealing
from chatsvc.models.seal.sealed import SUFFIX, KeyEncryptionKey, Owner, rewrap_file, seal_file
from chatsvc.models.store import ModelFolder, ModelStore

_PREFIX = ".sealing-"


def seal(store: ModelStore, name: str, kek: KeyEncryptionKey, progress: Progress = no_progress) -> None:
    """Seal the weights of ``name``; no plaintext remains in the store.

    Raises:
        ModelRefused: the model does not verify.
        OperatorError: it is sealed already.
    """
    folder = _open(store, name, progress)
    description = folder.description()
    if description.sealed:
        raise OperatorError(f"{name} is sealed already; 'chatsvc model rotate-key' gives it another key")
    owner = Owner(name, description.revision)

    def fill(new: Path) -> None:
        for weight in description.weights:
            seal_file(folder.path / weight, new / f"{weight}{SUFFIX}", owner, kek, progress)
        unsealing.check(new, description.weights, owner, kek)

    sealed = msgspec.structs.replace(description, sealed=True)
    _replace(store, folder, sealed, description.weights, fill)


def rotate(store: ModelStore, name: str, keys: tuple[KeyEncryptionKey, KeyEncryptionKey]) -> None:
    """Wrap the data keys of ``name`` under another key. ``keys``: the old one, the new one.

    Raises:
        ModelRefused: the old key is not the one it was sealed with.
        OperatorError: the model is not sealed.
    """
    folder = _open(store, name, no_progress)
    description = _sealed_description(folder)
    owner = Owner(name, description.revision)
    files = [f"{weight}{SUFFIX}" for weight in description.weights]

    def fill(new: Path) -> None:
        for file in files:
            rewrap_file(folder.path / file, new / file, owner, keys)
        unsealing.check(new, description.weights, owner, keys[1])

    _replace(store, folder, description, files, fill)


def check(store: ModelStore, name: str, kek: KeyEncryptionKey) -> None:
    """Check that the sealed model ``name`` unseals with this key; in memory only.

    Raises:
        ModelRefused: it would not.
        OperatorError: the model is not sealed.
    """
    folder = _open(store, name, no_progress)
    description = _sealed_description(folder)
    unsealing.check(folder.path, description.weights, Owner(name, description.revision), kek)


def sweep(store: ModelStore) -> None:
    """Destroy the remains of an interrupted sealing."""
    if store.root.is_dir():
        for path in store.root.glob(f"{_PREFIX}*"):
            _destroy(path)
        sync_directory(store.root)


def _open(store: ModelStore, name: str, progress: Progress) -> ModelFolder:
    sweep(store)
    folder = store.get(name)
    folder.verify(full=True, progress=progress)
    return folder


def _sealed_description(folder: ModelFolder) -> ModelDescription:
    description = folder.description()
    if not description.sealed:
        raise OperatorError(f"{folder.name} is not sealed; seal it with 'chatsvc model seal'")
    return description


def _replace(
    store: ModelStore,
    folder: ModelFolder,
    description: ModelDescription,
    replaced: list[str],
    fill: Callable[[Path], None],
) -> None:
    """Build the new folder, exchange it with the old one, destroy the old one."""
    new = store.root / f"{_PREFIX}{folder.name}"
    new.mkdir(mode=PRIVATE_FOLDER)
    try:
        fill(new)
        for path in folder.path.iterdir():
            if path.name not in {*replaced, DESCRIPTION_FILE, manifest.MANIFEST_FILE}:
                copy_file(path, new / path.name)
        write_file(new / DESCRIPTION_FILE, description.encode())
        manifest.write(new, folder.name, store.keys)
        exchange(new, folder.path)
    finally:
        _destroy(new)  # the old folder, or what there is of the new one
    sync_directory(store.root)


def _destroy(folder: Path) -> None:
    """Overwrite every file, then remove the folder."""
    for path in folder.iterdir():
        if path.is_file() and not path.is_symlink():
            erase(path)
    shutil.rmtree(folder)
