"""Protects against an unintended rollback: activating an older model requires naming its version.

Models belong to one line when they came from the same source at any revision: the same model id, or a file or folder of
the same name. Within a line, the one imported earlier is older. Knows nothing about stores.
"""

from __future__ import annotations

import time

from chatsvc.errors import OperatorError
from chatsvc.models.description import ModelDescription

_SHOWN_CHARS = 23  # "sha256:" and 16 digits
_LEAST_CHARS = 12


class OlderModel(OperatorError):
    """The model is older than the active one of its line, and the request did not name its version."""

    code = "older_model"


def is_rollback(active: ModelDescription | None, wanted: ModelDescription) -> bool:
    """Whether activating ``wanted`` would go back within a line."""
    if active is None:
        return False
    same_line = active.source.partition("@")[0] == wanted.source.partition("@")[0]
    return active.name != wanted.name and same_line and wanted.created < active.created


def check(active: ModelDescription | None, wanted: ModelDescription, version: str | None) -> None:
    """Refuse to go back unless the version is named.

    Args:
        active: the served model; None where there is none, or its age is unknown.
        wanted: the model to activate.
        version: its revision, or at least the first 12 characters of it; None where not given.

    Raises:
        OlderModel: the version is missing or differs.
    """
    if active is None or not is_rollback(active, wanted):
        return
    if version is not None and (version == wanted.revision or _begins(wanted.revision, version)):
        return
    day = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(wanted.created))
    raise OlderModel(
        f"{wanted.name} was imported on {day}, before the active model {active.name} from the same source. To go back "
        f"to it, name its version: {wanted.revision[:_SHOWN_CHARS]} (chatsvc model activate {wanted.name} --version "
        f"{wanted.revision[:_SHOWN_CHARS]})."
    )


def _begins(revision: str, version: str) -> bool:
    return len(version) >= _LEAST_CHARS and revision.startswith(version)
