"""Chooses the runner for a model and says why. Importing this module imports no inference library."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

from chatsvc.engine.runners.base import Runner, RunnerOptions
from chatsvc.errors import OperatorError
from chatsvc.models.card import ModelCard

_log = logging.getLogger(__name__)

_SERVES = {"openvino": ("gguf", "openvino"), "torch": ("safetensors",), "torch-int8": ("safetensors",)}
_MODULE = {"openvino": "openvino_genai", "torch": "torch", "torch-int8": "torch"}


def load_runner(path: Path, model_format: str, card: ModelCard, options: RunnerOptions) -> Runner:
    """Load the weights at ``path`` into the runner that the options name, or the best one for ``auto``.

    Raises:
        OperatorError: no runner that is installed serves this format, or loading failed.
    """
    kind, why = choose(model_format, options.kind)
    _log.info("runner %s: %s", kind, why)
    if kind == "openvino":
        from chatsvc.engine.runners.openvino import OpenVinoRunner  # noqa: PLC0415 - only where it serves

        return OpenVinoRunner(path, card, options)
    from chatsvc.engine.runners.torch import TorchRunner  # noqa: PLC0415 - only where it serves

    return TorchRunner(path, card, options)


def choose(model_format: str, wanted: str) -> tuple[str, str]:
    """Which runner and why.

    Raises:
        OperatorError: none fits; the message names the remedy.
    """
    fitting = [kind for kind, formats in _SERVES.items() if model_format in formats]
    if wanted != "auto":
        if wanted not in fitting:
            raise OperatorError(
                f"engine.runner = {wanted} does not serve {model_format} weights; "
                f"set it to auto, or convert the model with 'chatsvc model convert'"
            )
        fitting = [wanted]
    installed = [kind for kind in fitting if importlib.util.find_spec(_MODULE[kind]) is not None]
    if not installed:
        if not fitting:
            raise OperatorError(
                f"No runner serves {model_format} weights; convert the model with 'chatsvc model convert'."
            )
        raise OperatorError(
            f"{model_format} weights need {_MODULE[fitting[0]]}, which is not installed: pip install 'chatsvc[torch]'"
        )
    kind = installed[0]
    if wanted != "auto":
        return kind, "engine.runner says so"
    return kind, f"engine.runner is auto and the weights are {model_format}"
