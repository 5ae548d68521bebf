"""Makes a model the active one: verifies it, runs the smoke test, records the change and tells the running service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chatsvc.cli.audit.recording import recorded
from chatsvc.cli.models.smoke_test import lacks_key, smoke_test
from chatsvc.cli.output import ShownProgress
from chatsvc.disk.pidfile import tell_to_swap
from chatsvc.errors import OperatorError
from chatsvc.settings.load import Settings

if TYPE_CHECKING:
    from chatsvc.models.store import ModelStore

_NOT_LOADED = "It is sealed and models.kek_file is not set here, so loading it was not tried: the engine needs the key."


def activate(
    settings: Settings, store: ModelStore, name: str, version: str | None = None, *, is_tested: bool = False
) -> str:
    """Make it the active model and tell the running service; returns what to print.

    Raises:
        OperatorError: it would not be served, or is older than the active one and ``version`` does not name it.
    """
    folder = store.get(name)
    refusal: OperatorError | None = None
    if not is_tested:
        try:
            with ShownProgress() as progress:
                folder.verify()
                smoke_test(settings, folder, progress)
        except OperatorError as error:
            refusal = error
    # The smoke test comes before the record, because no other process can write to the audit log during a record.
    details: dict[str, object] = {"before": _active_name(store), "after": name}
    if version is not None:
        details["version"] = version
    with recorded(settings, "admin.model.activate", details):
        if refusal is not None:
            raise refusal
        details["digest"] = store.activate(name, version).card().digest
    hint = f"\n{_NOT_LOADED}" if lacks_key(settings, folder) else ""
    if tell_to_swap(settings.home):
        return f"{name} is active. The running service switches to it without interrupting requests.{hint}"
    return f"{name} is active from the next start of the engine.{hint}"


def _active_name(store: ModelStore) -> str | None:
    link = store.root / "current"
    return link.readlink().name if link.is_symlink() else None
