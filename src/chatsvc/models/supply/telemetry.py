"""Imports OpenVINO without its telemetry.

``import openvino`` sends an event to a web analytics service, from a child process, unless the package
``openvino_telemetry`` is missing; then it uses a stub. So this module makes it missing. Code that needs OpenVINO, NNCF
or Optimum calls one of these functions before importing them.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


def refuse_telemetry() -> None:
    """Make ``import openvino_telemetry`` fail in this process."""
    modules: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]  # None is how an import is refused
    modules["openvino_telemetry"] = None


def import_openvino() -> tuple[Any, Any]:
    """The modules ``openvino`` and ``openvino_genai``."""
    refuse_telemetry()
    import openvino  # noqa: PLC0415 - only after the line above
    import openvino_genai  # noqa: PLC0415 - only after the line above

    return openvino, openvino_genai
