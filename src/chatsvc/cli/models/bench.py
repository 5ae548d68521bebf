"""``chatsvc bench``: how much quality a model loses by quantisation. ``make bench`` in a checkout measures speed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from chatsvc.cli.output import json_option, print_json
from chatsvc.cli.service.serve import active_model
from chatsvc.errors import OperatorError
from chatsvc.settings.load import load
from chatsvc.wiring import model_store

if TYPE_CHECKING:
    from chatsvc.engine.runners.quality import Forecast, Quality
    from chatsvc.models.store import ModelFolder, ModelStore

RUNNERS = ("auto", "native", "openvino", "torch")
_GROUP_SIZE = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
# English prose from Python's own help, which every installation has: anybody can repeat a measurement.
TOPICS = ("execmodel", "exceptions", "context-managers", "customization", "import")


@click.group("bench")
def command() -> None:
    """Measure quality; `make bench` in a checkout measures throughput and latency."""


@command.command()
@click.argument("name", required=False)
@click.option("--against", help="The fp32 reference: a safetensors or GGUF model of the store; NAME itself by default.")
@click.option("--runner", type=click.Choice(RUNNERS), help="The runner to measure; as configured by default.")
@click.option(
    "--group-size", "group_sizes", type=int, multiple=True, help="OpenVINO's dynamic quantisation: 0 (off), 32, 64 …"
)
@click.option(
    "--tokens", "num_tokens", default=1056, show_default=True, type=click.IntRange(min=64), help="Tokens to compare."
)
@click.option(
    "--window", "window_size", default=528, show_default=True, type=click.IntRange(min=8), help="Tokens of a prompt."
)
@click.option("--text", type=click.Path(exists=True, path_type=Path), help="A text to use instead of Python's help.")
@json_option
def quality(
    name: str | None,
    against: str | None,
    runner: str | None,
    group_sizes: Sequence[int],
    as_json: bool,
    **text_options: int | Path | None,
) -> None:
    """Compare model NAME (default: the active one), as it is served, with fp32 torch, token by token.

    Prints how often both choose the same next token, and the perplexity of both. Needs the torch extra.
    """
    settings = load()
    store = model_store(settings)
    candidate = store.get(name) if name else active_model(settings)
    windows, digest = _windows(candidate, **text_options)  # type: ignore[arg-type]  # click's values
    with candidate.weights() as path:
        chosen = _runner(candidate, path, runner or settings.engine.runner, group_sizes)
    truth = _reference(store, against or candidate.name, windows)
    results = {group: _quality(candidate, windows, truth, (chosen, group)) for group in (group_sizes or (None,))}
    if as_json:
        rows = [{"runner": chosen, "group_size": group, **asdict(result)} for group, result in results.items()]
        head = {"model": candidate.name, "against": against or candidate.name, "text_sha256": digest}
        print_json({**head, "results": rows})
        return
    click.echo(f"{candidate.name} against {against or candidate.name} in fp32, text {digest[:12]}")
    for group, result in results.items():
        label = f"{chosen}, as served" if group is None else f"{chosen}, group size {group}"
        click.echo(
            f"  {label:24} top-1 agreement {result.agreement:.3f} of {result.num_tokens} tokens, "
            f"perplexity {result.perplexity:.3f} (fp32 {result.reference_perplexity:.3f})"
        )


def _runner(folder: ModelFolder, path: Path, wanted: str, group_sizes: Sequence[int]) -> str:
    """The runner that serves it here."""
    from chatsvc.engine.runners.choice import choose

    chosen, _ = choose(path, folder.format, wanted)
    if group_sizes and chosen != "openvino":
        raise OperatorError(f"{chosen} serves {folder.name} and has no --group-size; add --runner openvino")
    return chosen


def _windows(folder: ModelFolder, num_tokens: int, window_size: int, text: Path | None) -> tuple[list[list[int]], str]:
    """The text's first token ids cut into windows, and the text's digest."""
    from tokenizers import Tokenizer

    from chatsvc.engine.runners.quality import windows_of

    whole = text.read_text(encoding="utf-8", errors="replace") if text else manual()
    tokenizer = Tokenizer.from_str(folder.card().tokenizer_json.decode())
    ids = tokenizer.encode(whole, add_special_tokens=False).ids[:num_tokens]
    if len(ids) < window_size:
        raise OperatorError(f"the text has {len(ids)} tokens, and a window is {window_size}")
    return windows_of(ids, window_size), hashlib.sha256(whole.encode()).hexdigest()


def manual() -> str:
    """Python's own help on a few topics."""
    from pydoc_data.topics import topics

    return "\n".join(topics[topic] for topic in TOPICS)


def _reference(store: ModelStore, against: str, windows: Sequence[Sequence[int]]) -> list[Forecast]:
    from chatsvc.engine.runners.quality import forecast_fp32

    file = Path(against)
    try:
        if file.suffix == ".gguf" and file.is_file():
            return forecast_fp32(file, windows)
        folder = store.get(against)
        if folder.format == "openvino":
            raise OperatorError(f"{folder.name} is quantised: name the model it was converted from with --against.")
        with folder.weights() as path:
            return forecast_fp32(path, windows)
    except ImportError as error:
        raise OperatorError(f"fp32 needs torch: pip install 'chatsvc[torch]' ({error.name} is missing)") from error


def _quality(
    folder: ModelFolder, windows: Sequence[Sequence[int]], truth: Sequence[Forecast], how: tuple[str, int | None]
) -> Quality:
    from chatsvc.engine.runners import quality as measuring

    runner, group = how
    with folder.weights() as path:
        if runner == "native":
            said = measuring.forecast_native(path, windows)
        elif runner == "openvino":
            said = measuring.forecast_openvino(path, windows, {} if group is None else {_GROUP_SIZE: group})
        else:
            said = measuring.forecast_torch(path, windows)
    return measuring.compare(truth, said)
