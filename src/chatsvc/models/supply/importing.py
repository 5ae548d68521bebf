"""Imports a GGUF file, a safetensors folder or an OpenVINO folder into a model folder of the store.

Only files with known names are opened. Weights are copied and hashed; the small files (tokenizer, chat template,
end-of-sequence ids, context length) are parsed here, once. Knows nothing about the store's layout.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from chatsvc.disk.durable import copy_file, write_file
from chatsvc.disk.files import Progress, check_sizes, no_progress, sha256_of_all
from chatsvc.errors import ModelRefused, OperatorError
from chatsvc.models import description
from chatsvc.models.description import (
    DESCRIPTION_FILE,
    TEMPLATE_FILE,
    TOKENIZER_FILE,
    Format,
    ModelDescription,
    check_name,
)
from chatsvc.models.formats import architectures, decoder, finite, gguf, requantise, safetensors
from chatsvc.models.formats.decoder import Decoder
from chatsvc.models.formats.rope import NotServed
from chatsvc.models.seal.sealed import SUFFIX
from chatsvc.models.text import tokenizer
from chatsvc.models.text.files import Texts, config_of, read_texts, texts_of_gguf, with_recommended
from chatsvc.models.text.probing import check_template
from chatsvc.models.text.tokenizer import PRE_KEY, family

GGUF_WEIGHTS = "model.gguf"
OPENVINO_FILES = ("openvino_model.xml", "openvino_model.bin")
_OPENVINO_EXTRAS = (
    "openvino_tokenizer.xml",
    "openvino_tokenizer.bin",
    "openvino_detokenizer.xml",
    "openvino_detokenizer.bin",
)
_CONFIG_FILES = ("config.json", "generation_config.json")
_PART = re.compile(r"(.+-)([0-9]{5})-of-([0-9]{5})(\.gguf)", re.IGNORECASE)
# Which of several GGUF files to prefer: best quality for its speed first.
_PREFERRED = ("q8_0", "q4_k_m", "q6_k", "q4_1", "q4_0", "f16")


@dataclass(frozen=True, slots=True)
class Label:
    """Name and origin of the imported model. An empty revision becomes the weights' digest."""

    name: str
    created: int
    revision: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class _Contents:
    """Which files are copied to which names, and what was read from the small ones.

    Attributes:
        weights: sources by target name; the parts of a GGUF model become one file.
        vocabulary_size: number of rows of the embedding; None where unknown.
        index: made for safetensors shards that came without one.
        missing_pre: a GGUF file's missing ``tokenizer.ggml.pre``, without which OpenVINO does not load it.
    """

    format: Format
    weights: Mapping[str, Sequence[Path]]
    others: dict[str, Path]
    texts: Texts
    vocabulary_size: int | None = None
    index: bytes | None = None
    missing_pre: str | None = None


def import_into(folder: Path, source: Path, label: Label, progress: Progress = no_progress) -> ModelDescription:
    """Fill an empty folder from ``source``. The caller writes the manifest.

    Raises:
        OperatorError: the source is not a supported model; the message names the remedy.
    """
    if (source / DESCRIPTION_FILE).is_file():
        return _adopt(folder, source, label, progress)
    contents = _contents_of(source)
    _check_vocabulary(contents)
    check_sizes([path for paths in contents.weights.values() for path in paths], folder)
    check_template(contents.texts.chat_template, contents.texts.bos_token, contents.texts.eos_token)
    # A download cache holds links to its blobs. Links are followed, because only the copy is served.
    digests = [_copy_weights(contents, paths, folder / name, progress) for name, paths in contents.weights.items()]
    for name, path in contents.others.items():
        copy_file(path.resolve(), folder / name)
    if contents.index is not None:
        write_file(folder / safetensors.INDEX_FILE, contents.index)
    _check_finite(contents.format, folder, progress)
    made = ModelDescription(
        name=label.name,
        revision=label.revision or f"sha256:{digests[0]}",
        created=label.created,
        context_length=contents.texts.context_length,
        eos_token_ids=contents.texts.eos_token_ids,
        format=contents.format,
        weights=list(contents.weights),
        bos_token=contents.texts.bos_token,
        eos_token=contents.texts.eos_token,
        sampling=contents.texts.sampling,
        source=label.source or source.name,
    )
    write_file(folder / DESCRIPTION_FILE, made.encode())
    write_file(folder / TOKENIZER_FILE, contents.texts.tokenizer_json)
    write_file(folder / TEMPLATE_FILE, contents.texts.chat_template.encode())
    return made


def _adopt(folder: Path, source: Path, label: Label, progress: Progress) -> ModelDescription:
    """Import a folder of another chatsvc store unchanged, sealed or not. Its manifest is signed by another key."""
    try:
        theirs = description.decode((source / DESCRIPTION_FILE).read_bytes())
    except ModelRefused as error:
        raise OperatorError(f"{source / DESCRIPTION_FILE}: is damaged; copy the folder again") from error
    if theirs.sealed and theirs.name != label.name:
        raise OperatorError(f"the model is sealed under the name {theirs.name!r}; import it with --name {theirs.name}")
    weights = [f"{name}{SUFFIX}" if theirs.sealed else name for name in theirs.weights]
    graph = [name for name in OPENVINO_FILES if f"{name}{SUFFIX}" not in weights]
    others = _existing(source, (*graph, *_CONFIG_FILES, safetensors.INDEX_FILE))
    for name in dict.fromkeys([*weights, TOKENIZER_FILE, TEMPLATE_FILE, *others]):
        copy_file((source / check_name(name)).resolve(), folder / name, progress)
    ours: ModelDescription = msgspec.structs.replace(theirs, name=label.name, created=label.created)
    write_file(folder / DESCRIPTION_FILE, ours.encode())
    tokenizer.parse((folder / TOKENIZER_FILE).read_bytes())
    template = (folder / TEMPLATE_FILE).read_text(encoding="utf-8", errors="replace")
    check_template(template, ours.bos_token, ours.eos_token)
    return ours


def _copy_weights(contents: _Contents, sources: Sequence[Path], target: Path, progress: Progress) -> str:
    """Copy one weight file, or join it from several; returns the SHA-256 of the source."""
    paths = [path.resolve() for path in sources]
    added = {} if contents.missing_pre is None else {PRE_KEY: contents.missing_pre}
    if contents.format != "gguf" or not (added or len(paths) > 1 or requantise.is_needed(gguf.read_head(paths[0]))):
        return copy_file(paths[0], target, progress)
    requantise.rewrite(paths, target, added, progress)
    return sha256_of_all(paths, progress)


def _check_vocabulary(contents: _Contents) -> None:
    """Every id that the tokenizer gives must have an embedding."""
    ids = tokenizer.parse(contents.texts.tokenizer_json).get_vocab(with_added_tokens=True).values()
    if contents.vocabulary_size is not None and max(ids, default=0) >= contents.vocabulary_size:
        raise OperatorError(
            f"the tokenizer's ids go up to {max(ids)}, but the weights hold the embeddings of "
            f"{contents.vocabulary_size} tokens only: tokenizer and weights are of different models"
        )


def _check_finite(model_format: Format, folder: Path, progress: Progress) -> None:
    if model_format == "gguf":
        finite.check_gguf(folder / GGUF_WEIGHTS, progress)
    elif model_format == "safetensors":
        finite.check_safetensors(folder, progress)


def suggested_name(source: Path) -> str:
    """A store name derived from a file's or folder's name."""
    stem = source.name.removesuffix(".gguf")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("._-").lower()[:100] or "model"


def _contents_of(source: Path) -> _Contents:
    if source.is_file():
        if source.suffix.lower() != ".gguf":
            raise OperatorError(
                f"{source}: only a .gguf file or a folder with safetensors or OpenVINO files is imported"
            )
        return _contents_of_gguf(source)
    if not source.is_dir():
        raise OperatorError(f"{source}: there is no such file or folder")
    if all((source / name).is_file() for name in OPENVINO_FILES):
        return _contents_of_openvino(source)
    if safetensors.has_weights(source):
        return _contents_of_safetensors(source)
    if files := sorted(source.glob("*.gguf")):
        contents = _contents_of_gguf(preferred_gguf(files))
        return dataclasses.replace(contents, texts=with_recommended(contents.texts, source))
    raise OperatorError(
        f"{source}: holds no model that can be imported: expected a .gguf file, model.safetensors with config.json and "
        "tokenizer.json, or openvino_model.xml with .bin (pickled weights like pytorch_model.bin are never opened)"
    )


def preferred_gguf(files: Sequence[Path]) -> Path:
    """The preferred one of several quantisations."""
    for wanted in _PREFERRED:
        for path in files:
            if re.search(rf"(?<![a-z0-9]){wanted}(?![a-z0-9_])", path.stem.lower()):
                return path
    return files[0]


def _contents_of_gguf(path: Path) -> _Contents:
    parts = _parts(path)
    heads = [gguf.read_head(part.resolve()) for part in parts]
    _check_parts(parts, heads)
    head = heads[0]
    tensors = {name: tensor for each in heads for name, tensor in each.tensors.items()}
    whole = dataclasses.replace(head, tensors=tensors)
    what = _described(path, lambda: decoder.of_gguf(whole))
    for name in decoder.used_in_gguf(tensors, decoder.gguf_architecture(what.architecture)):
        if tensors[name].number not in gguf.TENSOR_TYPES:
            raise OperatorError(
                f"{path.name}: the tensor {name!r} has quantisation type {tensors[name].number}, which is not served; "
                "use a file of another type (a q8_0 or q4_k_m file)"
            )
    embedding = tensors.get("token_embd.weight")
    return _Contents(
        "gguf",
        {GGUF_WEIGHTS: parts},
        {},
        texts_of_gguf(head, what.architecture),
        vocabulary_size=embedding.shape[0] if embedding else None,
        missing_pre=None if PRE_KEY in head.metadata else family(head),
    )


def _parts(path: Path) -> list[Path]:
    """All files of a GGUF model, of which ``path`` is any; llama.cpp names parts ``NAME-00001-of-00003.gguf``.

    Raises:
        OperatorError: one is missing; the message names it.
    """
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path]
    stem, _, count, suffix = match.groups()
    parts = [path.with_name(f"{stem}{number:05d}-of-{count}{suffix}") for number in range(1, int(count) + 1)]
    for part in parts:
        if not part.is_file():
            raise OperatorError(
                f"{path.name} is one of {len(parts)} parts of a model, and {part.name} is missing; put all parts "
                "into one folder"
            )
    return parts


def _check_parts(parts: Sequence[Path], heads: Sequence[gguf.GgufHead]) -> None:
    """Check the parts' own statement of number and count."""
    for number, (path, head) in enumerate(zip(parts, heads, strict=True)):
        count, place = head.metadata.get("split.count", 1), head.metadata.get("split.no", 0)
        if (count or 1) != len(parts) or place != number:
            raise OperatorError(
                f"{path.name} says that it is part {place + 1} of {count}; give parts the names that they had when the "
                "model was split (NAME-00001-of-00002.gguf), in one folder"
            )


def _described(path: Path, read: Callable[[], Decoder]) -> Decoder:
    """What a model computes.

    Raises:
        OperatorError: the model needs something that no runner is known to compute; the message names it.
    """
    try:
        return read()
    except NotServed as error:
        served = ", ".join(one.models for one in architectures.ALL)
        raise OperatorError(
            f"{path.name}: {error.message} is not served; take one of {served}, or a model "
            "that was converted to OpenVINO"
        ) from error
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise OperatorError(
            f"{path.name}: its description of the model is damaged ({error}); fetch it again"
        ) from error


def _contents_of_openvino(source: Path) -> _Contents:
    others = _existing(source, (*_OPENVINO_EXTRAS, *_CONFIG_FILES))
    weights = {name: [source / name] for name in reversed(OPENVINO_FILES)}
    return _Contents("openvino", weights, others, read_texts(source))


def _contents_of_safetensors(source: Path) -> _Contents:
    paths = safetensors.files_of(source)
    tensors = safetensors.tensors_of(source)
    texts = read_texts(source)
    _described(source, lambda: decoder.of_config(config_of(source), tensors, frozenset()))
    embedding = tensors.get("model.embed_tokens.weight")
    has_index = (source / safetensors.INDEX_FILE).is_file()
    return _Contents(
        "safetensors",
        {path.name: [path] for path in paths},
        _existing(source, (*_CONFIG_FILES, *([safetensors.INDEX_FILE] if has_index else []))),
        texts,
        vocabulary_size=embedding.shape[0] if embedding and embedding.shape else None,
        index=None if has_index or paths[0].name == safetensors.SINGLE_FILE else safetensors.index_of(source),
    )


def _existing(source: Path, names: Sequence[str]) -> dict[str, Path]:
    return {name: source / name for name in names if (source / name).is_file()}
