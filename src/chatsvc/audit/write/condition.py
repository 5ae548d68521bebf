"""Whether an audit log can be written, and what may be said to anybody who asks when it cannot.

The cause, with the path of the file, is for the process's own log: ``/healthz`` answers callers who need neither. Knows
nothing about disks.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Literal

Condition = Literal["open", "full", "dead", "closed"]

PROBLEMS: MappingProxyType[Condition, str | None] = MappingProxyType(
    {
        "open": None,
        "full": "there is no space on its disk",
        "dead": "its disk or its writer failed, or its file was taken away, and it is not tried again before a restart",
        "closed": "it is closed",
    }
)
SILENT = "its disk does not answer"
