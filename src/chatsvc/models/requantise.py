"""Rewrites the tensors of a GGUF file that OpenVINO would load as something else than they are.

A group of Q4_1 or Q4_K weights has a fractional minimum; OpenVINO's reader rounds it to a whole zero point. On
SmolLM2-135M Q4_1, against the same weights in fp32 (perplexity 21.5): loaded as it is, perplexity 26.8 and 0.73 of the
greedy choices equal; rewritten as Q8_0, 21.7 and 0.96. So such tensors become Q8_0, which is loaded as it is, before
they are ever served; the file grows by half. Knows nothing about the store.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from chatsvc.models.files import Progress, new_file, no_progress, open_regular
from chatsvc.models.gguf import TENSOR_TYPES, GgufHead, read_head

_INEXACT = ("Q4_1", "Q4_K")
_TARGET = 8  # Q8_0
_TARGET_FILE_TYPE = 7  # general.file_type of files that are mostly Q8_0
_FILE_TYPE_KEY = b"general.file_type"
_ALIGNMENT = 32
_UINT32 = 4


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor's entry in the head; ``shape`` has the row length first."""

    name: bytes
    shape: tuple[int, ...]
    kind: int
    offset: int

    def packed(self, kind: int, offset: int) -> bytes:
        """The entry with another type and place."""
        shape = struct.pack(f"<I{len(self.shape)}Q", len(self.shape), *self.shape)
        return struct.pack("<Q", len(self.name)) + self.name + shape + struct.pack("<IQ", kind, offset)

    def num_bytes(self, kind: int) -> int:
        """How much it takes in a type."""
        _, block_bytes, block_values = TENSOR_TYPES[kind]
        return math.prod(self.shape) // block_values * block_bytes


def is_needed(head: GgufHead) -> bool:
    """Whether OpenVINO would change a tensor of this file."""
    return any(tensor.kind in _INEXACT for tensor in head.tensors.values())


def rewrite(path: Path, progress: Progress = no_progress) -> None:
    """Replace the file by one whose inexact tensors are Q8_0; everything else stays as it is."""
    head = read_head(path)
    rewritten = path.with_name(f"{path.name}.q8_0")
    with open_regular(path) as reader, mmap.mmap(reader.fileno(), 0, access=mmap.ACCESS_READ) as content:
        tensors = _tensors(content[head.metadata_end : head.tensors_end])
        alignment = head.metadata.get("general.alignment", _ALIGNMENT)
        with new_file(rewritten) as writer:
            writer.write(_with_file_type(content[: head.metadata_end]))
            offset = 0
            for tensor in tensors:
                writer.write(tensor.packed(_new_kind(tensor), offset))
                offset += _aligned(tensor.num_bytes(_new_kind(tensor)), alignment)
            _pad(writer, alignment)
            for number, tensor in enumerate(tensors, start=1):
                start = head.data_start + tensor.offset
                writer.write(_values(tensor, content[start : start + tensor.num_bytes(tensor.kind)]))
                _pad(writer, alignment)
                progress(f"rewriting {path.name} as Q8_0", number, len(tensors))
    rewritten.replace(path)


def _tensors(entries: bytes) -> list[_Tensor]:
    """The entries of the head, which has been checked."""
    tensors, at = [], 0
    while at < len(entries):
        (length,) = struct.unpack_from("<Q", entries, at)
        name = entries[at + 8 : at + 8 + length]
        at += 8 + length
        (num_dimensions,) = struct.unpack_from("<I", entries, at)
        layout = struct.Struct(f"<{num_dimensions}QIQ")
        *shape, kind, offset = layout.unpack_from(entries, at + 4)
        at += 4 + layout.size
        tensors.append(_Tensor(name, tuple(shape), kind, offset))
    return tensors


def _new_kind(tensor: _Tensor) -> int:
    return _TARGET if TENSOR_TYPES[tensor.kind][0] in _INEXACT else tensor.kind


def _values(tensor: _Tensor, content: bytes) -> bytes:
    """The tensor's bytes in its new type."""
    if _new_kind(tensor) == tensor.kind:
        return content
    import numpy as np  # noqa: PLC0415 - with gguf, half a second that most commands need not pay
    from gguf import GGMLQuantizationType, quants  # noqa: PLC0415 - see above

    rows = np.frombuffer(content, dtype=np.uint8).reshape(math.prod(tensor.shape[1:]), -1)
    exact = quants.dequantize(rows, GGMLQuantizationType(tensor.kind))
    requantised: np.ndarray = quants.quantize(exact, GGMLQuantizationType(_TARGET))
    return requantised.tobytes()


def _with_file_type(metadata: bytes) -> bytes:
    """The metadata saying what most tensors are now, where it says so at all."""
    key = struct.pack("<Q", len(_FILE_TYPE_KEY)) + _FILE_TYPE_KEY + struct.pack("<I", _UINT32)
    before, found, after = metadata.partition(key)
    return before + found + struct.pack("<I", _TARGET_FILE_TYPE) + after[4:] if found else metadata


def _aligned(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _pad(writer: BinaryIO, alignment: int) -> None:
    writer.write(bytes(_aligned(writer.tell(), alignment) - writer.tell()))
