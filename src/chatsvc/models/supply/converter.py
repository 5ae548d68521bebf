"""The program that converts: ``python -m chatsvc.models.supply.converter SOURCE TARGET int8|int4``.

int8 is optimum-intel's default. int4 is calibrated: nncf records the layers' inputs on a text (Python's manual,
available offline) and chooses scales accordingly; embeddings and output projection stay int8. Telemetry and network are
switched off before any library that uses them is imported. Code from a model folder is never run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chatsvc.models.supply.telemetry import refuse_telemetry

# Disjoint from the topics that `chatsvc bench quality` measures with.
CALIBRATION_TOPICS = (
    *("compound", "formatstrings", "string-methods", "typesseq", "debugger", "assignment", "comparisons"),
    *("typesmapping", "strings", "calls", "function", "numeric-types"),
)
_GROUP_SIZE = 32
_NUM_SAMPLES = 32
_SAMPLE_TOKENS = 256


def main(arguments: list[str]) -> None:
    """Convert and write ``TARGET``."""
    source, target, weight_format = arguments
    refuse_telemetry()
    import huggingface_hub.constants  # noqa: PLC0415

    huggingface_hub.constants.HF_HUB_OFFLINE = True
    if weight_format == "int4":
        _convert_int4(Path(source), Path(target))
        return
    from optimum.commands.optimum_cli import main as optimum_cli  # noqa: PLC0415

    options = ["--task", "text-generation-with-past", "--library", "transformers", "--weight-format", weight_format]
    sys.argv = ["optimum-cli", "export", "openvino", "--model", source, "--disable-convert-tokenizer", *options, target]
    optimum_cli()


def _convert_int4(source: Path, target: Path) -> None:
    import nncf  # noqa: PLC0415 - an extra
    from optimum.intel import OVModelForCausalLM  # noqa: PLC0415 - an extra

    model = OVModelForCausalLM.from_pretrained(
        source, export=True, load_in_8bit=False, compile=False, local_files_only=True, trust_remote_code=False
    )
    nncf.compress_weights(
        model.model,
        mode=nncf.CompressWeightsMode.INT4_ASYM,
        group_size=_GROUP_SIZE,
        ratio=1.0,
        awq=True,
        scale_estimation=True,
        dataset=nncf.Dataset(list(_samples(source)), _inputs),
        subset_size=_NUM_SAMPLES,
    )
    model.save_pretrained(target)


def _samples(source: Path) -> Iterator[list[int]]:
    """Samples spread over the whole manual."""
    from pydoc_data.topics import topics  # noqa: PLC0415 - large

    from tokenizers import Tokenizer  # noqa: PLC0415 - only for int4

    text = "\n".join(topics[topic] for topic in CALIBRATION_TOPICS)
    ids = Tokenizer.from_file(str(source / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    stride = max(_SAMPLE_TOKENS, len(ids) // _NUM_SAMPLES)
    for start in range(0, len(ids) - _SAMPLE_TOKENS + 1, stride):
        yield ids[start : start + _SAMPLE_TOKENS]


def _inputs(ids: list[int]) -> dict[str, Any]:
    """The inputs of the exported model."""
    import numpy as np  # noqa: PLC0415 - only for int4

    return {
        "input_ids": np.array([ids]),
        "attention_mask": np.ones((1, len(ids)), dtype=np.int64),
        "position_ids": np.arange(len(ids))[None],
        "beam_idx": np.zeros(1, dtype=np.int32),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
