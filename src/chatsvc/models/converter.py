"""The conversion's own process: ``python -m chatsvc.models.converter SOURCE TARGET int8|int4``.

Telemetry and network are off before a library that knows of them is imported. Code from a model folder is never run.
"""

from __future__ import annotations

import sys

from chatsvc.models.quiet import refuse_telemetry

_INT4 = ["--group-size", "64", "--ratio", "1.0"]


def main(arguments: list[str]) -> None:
    """Convert and write ``TARGET``."""
    source, target, weight_format = arguments
    refuse_telemetry()
    import huggingface_hub.constants  # noqa: PLC0415

    huggingface_hub.constants.HF_HUB_OFFLINE = True
    from optimum.commands.optimum_cli import main as optimum_cli  # noqa: PLC0415

    options = ["--task", "text-generation-with-past", "--library", "transformers", "--weight-format", weight_format]
    options += ["--disable-convert-tokenizer", *(_INT4 if weight_format == "int4" else [])]
    sys.argv = ["optimum-cli", "export", "openvino", "--model", source, *options, target]
    optimum_cli()


if __name__ == "__main__":
    main(sys.argv[1:])
