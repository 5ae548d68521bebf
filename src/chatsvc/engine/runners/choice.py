"""Chooses the runner for a model and says why. Importing this module imports no inference library."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path

from chatsvc.engine.runners.base import Runner, RunnerOptions
from chatsvc.errors import OperatorError
from chatsvc.models.card import ModelCard
from chatsvc.models.formats import decoder, gguf
from chatsvc.models.formats.decoder import Decoder
from chatsvc.models.formats.rope import NotServed

_log = logging.getLogger(__name__)

_SERVES = {
    "native": ("gguf", "safetensors"),
    "openvino": ("gguf", "openvino"),
    "torch": ("safetensors",),
}
# What OpenVINO GenAI's GGUF reader builds graphs of.
OPENVINO_GGUF_ARCHITECTURES = frozenset({"llama", "qwen2", "qwen3"})
# The number types that OpenVINO GenAI's GGUF reader takes.
_OPENVINO_GGUF_KINDS = frozenset({"F32", "F16", "Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K"})
_MODULE = {"openvino": "openvino_genai", "torch": "torch"}


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
        from chatsvc.engine.runners.openvino.runner import OpenVinoRunner  # noqa: PLC0415 - only where it serves

        return OpenVinoRunner(path, card, options)
    from chatsvc.engine.runners.reference.runner import TorchRunner  # noqa: PLC0415 - only where it serves

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
    if absent:
        return absent
    if kind == "native":
        from chatsvc.engine.runners.native import weights  # noqa: PLC0415 - numpy, only where it is asked for

        return weights.obstacle(path)
    return _obstacle_of_openvino(path) if kind == "openvino" and path.is_file() else ""


def _obstacle_of_openvino(path: Path) -> str:
    """OpenVINO builds a GGUF file's graph itself, and silently leaves out what it does not know.

    A folder holds a graph that was converted from the model, with all that belongs to it.

    Raises:
        OperatorError: the file is damaged.
    """
    try:
        with path.open("rb") as file:  # unsealed weights are a link to a file in memory
            head = gguf.head_of(file, path.name)
            what = decoder.of_gguf(head, gguf.read_floats(file, head, decoder.ROPE_FACTORS))
    except NotServed as error:
        return error.message
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise OperatorError(
            f"{path.name} is damaged and cannot be read ({error}); import another copy of it"
        ) from error
    return next(_unknown_to_openvino(what), "")


def _unknown_to_openvino(what: Decoder) -> Iterator[str]:
    if what.architecture not in OPENVINO_GGUF_ARCHITECTURES:
        yield f"the architecture {what.architecture}"
    if what.window:
        yield "sliding windows"
    if what.rope.scaling:
        yield f"a rotary position embedding scaled by {what.rope.scaling}"
    if what.is_interleaved and what.biases:
        yield "biases of interleaved heads"
    if others := what.biases - {"qkv"}:
        yield f"a bias of the {min(others)}"
    if unknown := what.kinds - _OPENVINO_GGUF_KINDS:
        yield f"numbers of type {min(unknown)}"


def missing(kind: str) -> str:
    """What a runner needs and this machine or installation does not have; empty when nothing is missing."""
    if kind == "native":
        from chatsvc.engine.runners.native import library  # noqa: PLC0415 - only where it is asked for

        return library.missing()
    if importlib.util.find_spec(_MODULE[kind]) is None:
        package = "openvino-genai" if kind == "openvino" else "chatsvc[torch]"
        return f"it needs {_MODULE[kind]}, which is not installed (pip install '{package}')"
    return ""
