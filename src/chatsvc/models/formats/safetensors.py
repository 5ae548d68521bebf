"""Finds the safetensors files that make up a model, and each tensor's place in them.

Where an index exists, it decides: only files that it names are read, so a stale shard beside them is ignored. Tensor
names carry the prefix ``model.`` as in transformers' causal models; it is added to files of a base model, which lack
it. Format: huggingface/safetensors, "Format" in its README.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from chatsvc.errors import OperatorError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
_MAX_HEAD_BYTES = 100_000_000
_MAX_INDEX_BYTES = 64 << 20
_SHARD = re.compile(r"(model-([0-9]{5})-of-)([0-9]{5})\.safetensors")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.safetensors")
_BASE_MODEL_NAME = re.compile(r"(embed_tokens|norm|layers\.[0-9]+)\..+")
_USED_NAME = re.compile(r"lm_head\.weight|model\.(embed_tokens|norm)\.weight|model\.layers\.[0-9]+\..+\.(weight|bias)")
# Bytes per number of the supported types.
NUMBER_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor: type, shape (rows first), file, offset in the file and size in bytes."""

    kind: str
    shape: tuple[int, ...]
    path: Path
    start: int
    num_bytes: int


def has_weights(folder: Path) -> bool:
    """Whether the folder holds safetensors files under their usual names."""
    return (folder / INDEX_FILE).is_file() or (folder / SINGLE_FILE).is_file() or bool(_shards(folder))


def files_of(folder: Path) -> list[Path]:
    """The files that make up the model.

    Raises:
        OperatorError: a file is missing, or the index is damaged; the message names it.
    """
    if (folder / INDEX_FILE).is_file():
        names = sorted(set(_weight_map(folder).values()))
    elif (folder / SINGLE_FILE).is_file():
        names = [SINGLE_FILE]
    else:
        names = _complete_set(folder)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise OperatorError(f"{folder.name}: {missing[0]} is missing ({len(missing)} of {len(names)}); fetch it")
    return [folder / name for name in names]


def tensors_of(folder: Path) -> dict[str, StoredTensor]:
    """The model's tensors by name.

    Raises:
        OperatorError: a file is missing or damaged, or does not hold what the index says.
    """
    found: dict[str, StoredTensor] = {}
    wanted = _weight_map(folder) if (folder / INDEX_FILE).is_file() else None
    for path in files_of(folder):
        held = _head(path)
        names = held if wanted is None else [name for name, file in wanted.items() if file == path.name]
        for name in names:
            if name not in held:
                raise OperatorError(
                    f"{INDEX_FILE} says that {path.name} holds the tensor {name[:200]!r}, but it does not; "
                    "the files are of different versions: fetch the model again"
                )
            found[f"model.{name}" if _BASE_MODEL_NAME.fullmatch(name) else name] = held[name]
    return found


def used(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors that a supported decoder may use; others may have any type and size."""
    return {name: tensor for name, tensor in tensors.items() if _USED_NAME.fullmatch(name)}


def index_of(folder: Path) -> bytes:
    """Build an index for shards without one: transformers needs it."""
    weight_map = {name: path.name for path in files_of(folder) for name in _head(path)}
    return msgspec.json.encode({"metadata": {}, "weight_map": weight_map})


def _weight_map(folder: Path) -> dict[str, str]:
    path = folder / INDEX_FILE
    if path.stat().st_size > _MAX_INDEX_BYTES:
        raise OperatorError(f"{INDEX_FILE} is larger than any model's; fetch it again")
    try:
        names = msgspec.json.decode(path.read_bytes(), type=_Index).weight_map
    except msgspec.DecodeError as error:
        raise OperatorError(f"{INDEX_FILE} is not an index of safetensors ({error}); fetch it again") from error
    if not names:
        raise OperatorError(f"{INDEX_FILE} names no tensor; fetch it again")
    for name in names.values():
        if _FILE_NAME.fullmatch(name) is None:
            raise OperatorError(f"{INDEX_FILE} names {name[:200]!r}, which is no safetensors file of this folder")
    return names


def _shards(folder: Path) -> list[re.Match[str]]:
    return [match for path in sorted(folder.iterdir()) if (match := _SHARD.fullmatch(path.name))]


def _complete_set(folder: Path) -> list[str]:
    """The names of all shards, where the folder holds exactly one set."""
    counts = sorted({match[3] for match in _shards(folder)})
    if len(counts) != 1:
        raise OperatorError(
            f"{folder.name} holds shards of {len(counts)} sets and no {INDEX_FILE} that says which one is the model; "
            "fetch the index"
        )
    return [f"model-{number:05d}-of-{counts[0]}.safetensors" for number in range(1, int(counts[0]) + 1)]


def _head(path: Path) -> dict[str, StoredTensor]:
    """A file's tensors. They must end exactly at the end of the file, so a truncated download is noticed."""
    with path.open("rb") as file:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        head = file.read(length) if length < min(size, _MAX_HEAD_BYTES) else b""
    try:
        entries: dict[str, dict[str, Any]] = msgspec.json.decode(head, type=dict[str, dict[str, Any]])
        tensors = {name: _entry(path, 8 + length, entry) for name, entry in entries.items() if name != "__metadata__"}
        end = max(one.start + one.num_bytes for one in tensors.values())
    except (msgspec.DecodeError, ValueError, KeyError, TypeError, IndexError) as error:
        raise OperatorError(f"{path.name} is not a safetensors file or is damaged; fetch it again") from error
    if end != size:
        raise OperatorError(f"{path.name} is cut off or longer than it says; fetch it again")
    return tensors


def _entry(path: Path, data_start: int, entry: dict[str, Any]) -> StoredTensor:
    first, last = entry["data_offsets"]
    kind, shape = entry["dtype"], tuple(entry["shape"])
    if not (isinstance(kind, str) and 0 <= first <= last and all(isinstance(n, int) and n >= 0 for n in shape)):
        raise ValueError
    if kind in NUMBER_BYTES and math.prod(shape) * NUMBER_BYTES[kind] != last - first:
        raise ValueError
    return StoredTensor(kind, shape, path, data_start + first, last - first)
