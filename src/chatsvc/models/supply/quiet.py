"""Imports OpenVINO so that it does not phone home.

``import openvino`` sends an event to a web analytics service, from a process of its own, unless the package
``openvino_telemetry`` is missing, in which case it uses a stub that does nothing. So here it is missing. Whoever needs
OpenVINO, NNCF or Optimum calls one of these first; importing them directly would leak that we run.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


def refuse_telemetry() -> None:
    """From now on ``import openvino_telemetry`` fails in this process."""
    modules: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]  # None is how an import is refused
    modules["openvino_telemetry"] = None


def import_openvino() -> tuple[Any, Any]:
    """The modules ``openvino`` and ``openvino_genai``."""
    refuse_telemetry()
    import openvino  # noqa: PLC0415 - only after the line above
    import openvino_genai  # noqa: PLC0415 - only after the line above

    return openvino, openvino_genai
