"""Turns what people have (a GGUF file, a safetensors or OpenVINO folder) into a model folder of ours.

Only named files are taken, so nothing else of a source is ever opened; weights are copied and hashed, and what is small
is parsed once here: tokenizer, chat template, ending ids, context length. Knows nothing about the store's layout.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from chatsvc.errors import ModelRefused, OperatorError
from chatsvc.models import description, gguf, requantise, tokenizer
from chatsvc.models.description import DESCRIPTION_FILE, TEMPLATE_FILE, TOKENIZER_FILE, Format, ModelDescription
from chatsvc.models.files import (
    Progress,
    check_name,
    copy_file,
    no_progress,
    open_regular,
    write_file,
)
from chatsvc.models.sealed import SUFFIX
from chatsvc.models.texts import Texts, read_texts, texts_of_gguf
from chatsvc.models.tokenizer import PRE_KEY, family

GGUF_WEIGHTS = "model.gguf"
OPENVINO_FILES = ("openvino_model.xml", "openvino_model.bin")
_OPENVINO_EXTRAS = (
    "openvino_tokenizer.xml",
    "openvino_tokenizer.bin",
    "openvino_detokenizer.xml",
    "openvino_detokenizer.bin",
)
_CONFIG_FILES = ("config.json", "generation_config.json")
_SHARD = re.compile(r"model(-[0-9]{5}-of-[0-9]{5})?\.safetensors")
_INDEX = "model.safetensors.index.json"
# Of several GGUF files in a folder the one to take, by how much quality it keeps at which speed.
_PREFERRED = ("q8_0", "q4_k_m", "q6_k", "q4_1", "q4_0", "f16")
_GGUF_ARCHITECTURES = frozenset({"llama", "qwen2", "qwen3"})


@dataclass(frozen=True, slots=True)
class Label:
    """What an imported model is to be called. An empty revision becomes the weights' digest."""

    name: str
    created: int
    revision: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which files are copied to which names, and what was read from the small ones.

    ``missing_pre`` is a GGUF file's missing ``tokenizer.ggml.pre``, without which OpenVINO does not load it.
    """

    format: Format
    weights: dict[str, Path]
    others: dict[str, Path]
    texts: Texts
    missing_pre: str | None = None


def import_into(folder: Path, source: Path, label: Label, progress: Progress = no_progress) -> ModelDescription:
    """Fill an empty folder from ``source``; the manifest is the caller's.

    Raises:
        OperatorError: the source is not a model that can be served; the message names the remedy.
    """
    if (source / DESCRIPTION_FILE).is_file():
        return _adopt(folder, source, label, progress)
    plan = _plan(source)
    # A download cache holds links to its blobs; here the content counts, and only the copy is served.
    digests = [_copy_weights(plan, path.resolve(), folder / name, progress) for name, path in plan.weights.items()]
    for name, path in plan.others.items():
        copy_file(path.resolve(), folder / name)
    made = ModelDescription(
        name=label.name,
        revision=label.revision or f"sha256:{digests[0]}",
        created=label.created,
        context_length=plan.texts.context_length,
        eos_token_ids=plan.texts.eos_token_ids,
        format=plan.format,
        weights=list(plan.weights),
        bos_token=plan.texts.bos_token,
        eos_token=plan.texts.eos_token,
        source=label.source or source.name,
    )
    write_file(folder / DESCRIPTION_FILE, made.encode())
    write_file(folder / TOKENIZER_FILE, plan.texts.tokenizer_json)
    write_file(folder / TEMPLATE_FILE, plan.texts.chat_template.encode())
    return made


def _adopt(folder: Path, source: Path, label: Label, progress: Progress) -> ModelDescription:
    """Take in a folder of another chatsvc store, sealed or not, as it is; its manifest is signed by another key."""
    try:
        theirs = description.decode((source / DESCRIPTION_FILE).read_bytes())
    except ModelRefused as error:
        raise OperatorError(f"{source / DESCRIPTION_FILE}: is damaged; copy the folder again") from error
    if theirs.sealed and theirs.name != label.name:
        raise OperatorError(f"the model is sealed under the name {theirs.name!r}; import it with --name {theirs.name}")
    weights = [f"{name}{SUFFIX}" if theirs.sealed else name for name in theirs.weights]
    graph = [name for name in OPENVINO_FILES if f"{name}{SUFFIX}" not in weights]
    others = _existing(source, (*graph, *_CONFIG_FILES, _INDEX))
    for name in dict.fromkeys([*weights, TOKENIZER_FILE, TEMPLATE_FILE, *others]):
        copy_file((source / check_name(name)).resolve(), folder / name, progress)
    ours: ModelDescription = msgspec.structs.replace(theirs, name=label.name, created=label.created)
    write_file(folder / DESCRIPTION_FILE, ours.encode())
    tokenizer.parse((folder / TOKENIZER_FILE).read_bytes())
    return ours


def _copy_weights(plan: _Plan, source: Path, target: Path, progress: Progress) -> str:
    if plan.missing_pre is not None:
        digest = gguf.copy_with_text(source, target, PRE_KEY, plan.missing_pre, progress)
    else:
        digest = copy_file(source, target, progress)
    if plan.format == "gguf" and requantise.is_needed(gguf.read_head(target)):
        requantise.rewrite(target, progress)
    return digest


def suggested_name(source: Path) -> str:
    """A store name made of a file's or folder's name."""
    stem = source.name.removesuffix(".gguf")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("._-").lower()[:100] or "model"


def _plan(source: Path) -> _Plan:
    if source.is_file():
        if source.suffix.lower() != ".gguf":
            raise OperatorError(
                f"{source}: only a .gguf file or a folder with safetensors or OpenVINO files is imported"
            )
        return _plan_gguf(source)
    if not source.is_dir():
        raise OperatorError(f"{source}: there is no such file or folder")
    if all((source / name).is_file() for name in OPENVINO_FILES):
        return _plan_openvino(source)
    if shards := sorted(path for path in source.glob("*.safetensors") if _SHARD.fullmatch(path.name)):
        return _plan_safetensors(source, shards)
    if files := sorted(source.glob("*.gguf")):
        return _plan_gguf(preferred_gguf(files))
    raise OperatorError(
        f"{source}: holds no model that is taken in: expected a .gguf file, model.safetensors with config.json and "
        "tokenizer.json, or openvino_model.xml with .bin (pickled checkpoints like pytorch_model.bin are never opened)"
    )


def preferred_gguf(files: Sequence[Path]) -> Path:
    """Of several quantisations the one to serve."""
    for wanted in _PREFERRED:
        for path in files:
            if re.search(rf"(?<![a-z0-9]){wanted}(?![a-z0-9_])", path.stem.lower()):
                return path
    return files[0]


def _plan_gguf(path: Path) -> _Plan:
    head = gguf.read_head(path.resolve())
    architecture = head.get("general.architecture", str)
    if architecture not in _GGUF_ARCHITECTURES:
        raise OperatorError(
            f"{path.name}: architecture {architecture!r} cannot be loaded from GGUF "
            f"(served: {', '.join(sorted(_GGUF_ARCHITECTURES))}); import the safetensors folder and convert it instead"
        )
    missing_pre = None if PRE_KEY in head.metadata else family(head)
    return _Plan("gguf", {GGUF_WEIGHTS: path}, {}, texts_of_gguf(head, architecture), missing_pre)


def _plan_openvino(source: Path) -> _Plan:
    others = _existing(source, (*_OPENVINO_EXTRAS, *_CONFIG_FILES))
    return _Plan("openvino", {name: source / name for name in reversed(OPENVINO_FILES)}, others, read_texts(source))


def _plan_safetensors(source: Path, shards: Sequence[Path]) -> _Plan:
    for shard in shards:
        _check_safetensors(shard)
    others = _existing(source, (*_CONFIG_FILES, _INDEX))
    return _Plan("safetensors", {path.name: path for path in shards}, others, read_texts(source))


def _existing(source: Path, names: Sequence[str]) -> dict[str, Path]:
    return {name: source / name for name in names if (source / name).is_file()}


def _check_safetensors(path: Path) -> None:
    """The header is JSON and its tensors end exactly where the file does: a cut-off download is found here."""
    with open_regular(path.resolve()) as file:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length < min(size, 100_000_000) else b""
    try:
        tensors: dict[str, Any] = msgspec.json.decode(header, type=dict[str, Any])
        end = max(entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__")
    except (msgspec.DecodeError, ValueError, KeyError, TypeError, IndexError) as error:
        raise OperatorError(f"{path.name} is not a safetensors file or is damaged; fetch it again") from error
    if 8 + length + end != size:
        raise OperatorError(f"{path.name} is cut off or longer than it says; fetch it again")
