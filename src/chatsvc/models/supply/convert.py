"""Converts a safetensors model of the store to OpenVINO with int8 or int4 weights, as a new model of the store.

optimum-intel does the conversion in a separate process, which frees its memory at the end and switches its telemetry
and network off (:mod:`chatsvc.models.supply.converter`). It needs the ``torch`` extra; serving does not.
"""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Literal

import msgspec

from chatsvc.disk.durable import copy_file, write_file
from chatsvc.disk.files import Progress, no_progress, temporary_folder
from chatsvc.errors import OperatorError
from chatsvc.models.description import DESCRIPTION_FILE, TEMPLATE_FILE, TOKENIZER_FILE, check_name
from chatsvc.models.store import ModelFolder, ModelStore
from chatsvc.models.supply.importing import OPENVINO_FILES
from chatsvc.models.supply.programs import run_module

WeightFormat = Literal["int8", "int4"]

_NEEDED = ("torch", "optimum", "nncf")
_REMEDY = (
    "converting needs torch and optimum-intel, which serving does not: run 'make setup-dev' in a checkout, or "
    "pip install 'chatsvc[torch]' and then pip install --no-deps optimum-intel==2.2.0"
)
_CARRIED = (TOKENIZER_FILE, TEMPLATE_FILE, "config.json", "generation_config.json")


def convert(
    store: ModelStore,
    source_name: str,
    weight_format: WeightFormat,
    name: str | None = None,
    progress: Progress = no_progress,
) -> ModelFolder:
    """Convert ``source_name``; the result is named ``<source>-int8``, or ``name``.

    Raises:
        OperatorError: the source is not safetensors, a package is missing, or the conversion failed.
    """
    source = store.get(source_name)
    description = source.description()
    if description.format != "safetensors":
        raise OperatorError(f"{source_name} is {description.format}; only safetensors models are converted")
    require_converter()
    target = check_name(name or f"{source_name}-{weight_format}")
    with store.new_folder(target, progress) as folder:
        with source.weights() as weights, temporary_folder(store.root) as work:
            _run(weights, work, weight_format, progress)
            for file in OPENVINO_FILES:
                copy_file(work / "converted" / file, folder / file, progress)
        for file in _CARRIED:
            if (source.path / file).exists():
                copy_file(source.path / file, folder / file)
        converted = msgspec.structs.replace(
            description,
            name=target,
            created=int(time.time()),
            format="openvino",
            weights=["openvino_model.bin"],
            source=f"{description.source}, converted to {weight_format}",
        )
        write_file(folder / DESCRIPTION_FILE, converted.encode())
    return store.get(target)


def require_converter() -> None:
    """Check that the needed packages are installed.

    Raises:
        OperatorError: one is missing; the message names the remedy.
    """
    missing = [package for package in _NEEDED if importlib.util.find_spec(package) is None]
    if missing or importlib.util.find_spec("optimum.intel") is None:
        raise OperatorError(_REMEDY)


def _run(weights: Path, work: Path, weight_format: WeightFormat, progress: Progress) -> None:
    size = sum(path.stat().st_size for path in weights.glob("*.safetensors"))
    expected = size // {"int8": 2, "int4": 3}[weight_format]

    def watch(num_bytes: int) -> None:
        progress(f"converting to {weight_format}", min(num_bytes, expected), expected)

    run_module(["chatsvc.models.supply.converter", str(weights), str(work / "converted"), weight_format], work, watch)
