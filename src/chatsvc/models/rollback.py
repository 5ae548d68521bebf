"""Going back to an older model is an act of its own: it must be asked for by the model's version.

Models are of one line when they came from the same source, whatever its revision was: a model id, or a file or folder
of the same name. Within a line the one that came in earlier is older. Knows nothing about stores.
"""

from __future__ import annotations

import time

from chatsvc.errors import OperatorError
from chatsvc.models.description import ModelDescription

_SHOWN_CHARS = 23  # "sha256:" and 16 digits
_LEAST_CHARS = 12


class OlderModel(OperatorError):
    """The model is older than the active one of its line, and its version was not named."""

    code = "older_model"


def is_rollback(active: ModelDescription | None, wanted: ModelDescription) -> bool:
    """Whether making ``wanted`` the active model goes back within a line."""
    if active is None:
        return False
    same_line = active.source.partition("@")[0] == wanted.source.partition("@")[0]
    return active.name != wanted.name and same_line and wanted.created < active.created


def check(active: ModelDescription | None, wanted: ModelDescription, version: str | None) -> None:
    """Refuse to go back unless the version is named.

    Args:
        active: the model that is served; None where none is, or its age cannot be told.
        wanted: the one that is to be.
        version: its revision, or at least the first 12 characters of it; None where it was not named.

    Raises:
        OlderModel: it was not named, or is another.
    """
    if active is None or not is_rollback(active, wanted):
        return
    if version is not None and (version == wanted.revision or _begins(wanted.revision, version)):
        return
    day = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(wanted.created))
    raise OlderModel(
        f"{wanted.name} came in on {day}, before the active model {active.name} from the same source. To go back to "
        f"it, name its version: {wanted.revision[:_SHOWN_CHARS]} (chatsvc model activate {wanted.name} --version "
        f"{wanted.revision[:_SHOWN_CHARS]})."
    )


def _begins(revision: str, version: str) -> bool:
    return len(version) >= _LEAST_CHARS and revision.startswith(version)
