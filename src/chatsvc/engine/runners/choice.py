"""Chooses the runner for a model and says why. Importing this module imports no inference library."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

from chatsvc.engine.runners.base import Runner, RunnerOptions
from chatsvc.errors import OperatorError
from chatsvc.models.card import ModelCard

_log = logging.getLogger(__name__)

_SERVES = {
    "native": ("gguf", "safetensors"),
    "openvino": ("gguf", "openvino"),
    "torch": ("safetensors",),
    "torch-int8": ("safetensors",),
}
_MODULE = {"openvino": "openvino_genai", "torch": "torch", "torch-int8": "torch"}


def load_runner(path: Path, model_format: str, card: ModelCard, options: RunnerOptions) -> Runner:
    """Load the weights at ``path`` into the runner that the options name, or the best one for ``auto``.

    Raises:
        OperatorError: no runner that is installed serves this model, or loading failed.
    """
    kind, why = choose(path, model_format, options.kind)
    _log.info("runner %s: %s", kind, why)
    if kind == "native":
        from chatsvc.engine.runners.native.runner import NativeRunner  # noqa: PLC0415 - only where it serves

        return NativeRunner(path, card, options)
    if kind == "openvino":
        from chatsvc.engine.runners.openvino import OpenVinoRunner  # noqa: PLC0415 - only where it serves

        return OpenVinoRunner(path, card, options)
    from chatsvc.engine.runners.torch import TorchRunner  # noqa: PLC0415 - only where it serves

    return TorchRunner(path, card, options)


def choose(path: Path, model_format: str, wanted: str) -> tuple[str, str]:
    """Which runner and why.

    Raises:
        OperatorError: none fits; the message names the remedy.
    """
    fitting = [kind for kind, formats in _SERVES.items() if model_format in formats]
    if not fitting:
        raise OperatorError(f"No runner serves {model_format} weights; convert the model with 'chatsvc model convert'.")
    if wanted != "auto" and wanted not in fitting:
        raise OperatorError(
            f"engine.runner = {wanted} does not serve {model_format} weights; "
            f"set it to auto, or convert the model with 'chatsvc model convert'"
        )
    reasons: list[str] = []
    for kind in fitting if wanted == "auto" else [wanted]:
        obstacle = _obstacle(kind, path)
        if not obstacle:
            why = (
                "engine.runner says so" if wanted != "auto" else "; ".join(["it is the fastest that serves", *reasons])
            )
            return kind, why
        reasons.append(f"{kind} does not: {obstacle}")
    raise OperatorError(f"No runner serves this model here. {'; '.join(reasons)}.")


def _obstacle(kind: str, path: Path) -> str:
    """Why a runner cannot serve the model at ``path`` here; empty when it can."""
    absent = missing(kind)
    if absent or kind != "native":
        return absent
    from chatsvc.engine.runners.native import checkpoint  # noqa: PLC0415 - numpy, only where it is asked for

    return checkpoint.obstacle(path)


def missing(kind: str) -> str:
    """What a runner needs and this machine or installation does not have; empty when nothing is missing."""
    if kind == "native":
        from chatsvc.engine.runners.native import library  # noqa: PLC0415 - only where it is asked for

        return library.missing()
    if importlib.util.find_spec(_MODULE[kind]) is None:
        package = "openvino-genai" if kind == "openvino" else "chatsvc[torch]"
        return f"it needs {_MODULE[kind]}, which is not installed (pip install '{package}')"
    return ""
