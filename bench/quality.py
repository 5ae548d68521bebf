"""``python -m bench.quality``: what each way of serving a known model costs against its weights in fp32.

The same measurement as ``chatsvc bench quality``, over the formats and group sizes one could choose from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from bench import page, program
from bench.processes import end_on_sigterm
from bench.supply import Supply
from chatsvc.cli.models.bench import manual
from chatsvc.engine.runners import quality
from chatsvc.models.supply import known

Forecaster = Callable[[Sequence[Sequence[int]]], list[quality.Forecast]]
_GROUP_SIZE = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
_WINDOW = 528
# What says how the model is built; the rest of a configuration that came from GGUF says that it did.
_CONFIG_KEYS = frozenset(
    {
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_theta"),
        *("rope_parameters", "tie_word_embeddings", "head_dim", "bos_token_id", "eos_token_id", "pad_token_id"),
    }
)


def main() -> None:
    """Measure and write."""
    end_on_sigterm()
    parser = program.parser(__doc__)
    parser.add_argument(
        "--model", choices=known.MODELS, default=known.EMBEDDED.name, help="the embedded one by default"
    )
    parser.add_argument("--tokens", type=int, default=4 * _WINDOW)
    arguments = parser.parse_args()
    model = known.MODELS[arguments.model]
    supply = Supply(arguments.cache)
    served, original = supply.known(model)
    tokenizer = Tokenizer.from_str(served.card().tokenizer_json.decode())
    windows = quality.windows_of(tokenizer.encode(manual(), add_special_tokens=False).ids[: arguments.tokens], _WINDOW)
    truth = quality.forecast_fp32(original, windows)
    rows = []
    candidates = _of_embedded(supply, original, served.path) if model is known.EMBEDDED else _as_served(served.path)
    for title, forecast in candidates:
        result = quality.compare(truth, forecast(windows))
        rows.append({"served": title, **asdict(result)})
        print(title, result, flush=True)
    if not arguments.not_kept:
        name = "quality" if model is known.EMBEDDED else f"quality-{model.name}"
        page.save(name, {"rows": rows}, _table(rows))


def _as_served(folder: Path) -> Iterator[tuple[str, Forecaster]]:
    served = folder / "model.gguf"
    yield "native", partial(quality.forecast_native, served)
    yield "OpenVINO, group 32", partial(quality.forecast_openvino, served, properties={_GROUP_SIZE: 32})


def _of_embedded(supply: Supply, original: Path, folder: Path) -> Iterator[tuple[str, Forecaster]]:
    """The formats and group sizes that one could choose from."""
    source, served = _as_hugging_face(original, supply.cache / "smollm2"), folder / "model.gguf"
    yield "native, GGUF as served", partial(quality.forecast_native, served)
    yield "native, the same weights as safetensors fp32", partial(quality.forecast_native, source)
    for title, path, group in _of_openvino(supply, original, served, source):
        yield f"OpenVINO, {title}", partial(quality.forecast_openvino, path, properties={_GROUP_SIZE: group})


def _of_openvino(supply: Supply, original: Path, served: Path, source: Path) -> Iterator[tuple[str, Path, int]]:
    """Title, weights, the group of dynamic quantisation."""
    yield "GGUF as imported (Q4_1 rewritten as Q8_0), group 32", served, 32
    yield "GGUF as imported, no dynamic quantisation", served, 0
    yield "GGUF Q4_1 as it was, group 32", original, 32
    for group in (0, 32, 64, 128):
        title = f"converted int8, group {group}" if group else "converted int8, no dynamic quantisation"
        yield title, supply.converted(source, "int8"), group
    yield "converted int4, group 64, plain", supply.plain_int4(source), 32
    yield "converted int4 (scale estimation and AWQ, group 32)", supply.converted(source, "int4"), 32


def _as_hugging_face(original: Path, folder: Path) -> Path:
    """The GGUF file's weights in fp32 as a safetensors folder, so that the converter has something to convert.

    A model that was loaded from GGUF refuses to be saved; one made anew from a clean configuration does not.
    """
    if not (folder / "tokenizer_config.json").exists():
        where = {"gguf_file": original.name, "local_files_only": True}
        loaded = AutoModelForCausalLM.from_pretrained(original.parent, dtype=torch.float32, **where)
        config = {key: value for key, value in loaded.config.to_dict().items() if key in _CONFIG_KEYS}
        clean = LlamaForCausalLM(LlamaConfig(**config))
        clean.load_state_dict(loaded.state_dict())
        clean.save_pretrained(folder)
        AutoTokenizer.from_pretrained(original.parent, **where).save_pretrained(folder)
    return folder


def _table(rows: list[dict[str, object]]) -> str:
    lines = ["| served as | top-1 agreement with fp32 | perplexity (fp32: {:.2f}) |", "|---|---|---|"]
    lines[0] = lines[0].format(rows[0]["reference_perplexity"])
    lines += [f"| {row['served']} | {row['agreement']:.3f} | {row['perplexity']:.2f} |" for row in rows]
    return "\n".join(lines) + f"\n\n{rows[0]['num_tokens']} tokens of Python's own manual, windows of {_WINDOW}.\n"


if __name__ == "__main__":
    main()
