"""Rewrites a GGUF file: joins its parts, and converts tensors that some runner would not read exactly.

A group of Q4_1 or Q4_K weights has a fractional minimum; OpenVINO's reader rounds it to a whole zero point. On
SmolLM2-135M Q4_1, against the same weights in fp32 (perplexity 21.5): loaded unchanged, perplexity 26.8 and 0.73 of the
greedy choices equal; rewritten as Q8_0, 21.7 and 0.96. So such tensors, and those of types unknown to OpenVINO, become
Q8_0 at import; the file grows. BF16 becomes F16, which is exact except for tiny numbers. Tensors of unknown types are
dropped: import has refused the file if the model uses one. Knows nothing about the store.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from chatsvc.disk.durable import new_file
from chatsvc.disk.files import Progress, no_progress, open_regular
from chatsvc.errors import OperatorError
from chatsvc.models.formats.gguf import STRING, TENSOR_TYPES, GgufHead, GgufTensor, read_head

_NUMBERS = {kind: number for number, (kind, _, _) in TENSOR_TYPES.items()}
_AS_THEY_ARE = frozenset({"F32", "F16", "Q4_0", "Q8_0", "Q6_K"})
_WIDENED = {"F64": "F32", "BF16": "F16"}
_MOSTLY_Q8_0 = 7  # general.file_type
_FILE_TYPE_KEY = "general.file_type"
_ALIGNMENT = 32
_UINT32 = 4
_BLOCK_ROWS = 4096
_LARGEST_HALF = 65504.0


@dataclass(frozen=True, slots=True)
class _Part:
    """One input file."""

    content: mmap.mmap
    head: GgufHead

    def rows(self, tensor: GgufTensor) -> Iterator[bytes]:
        """A tensor's bytes, in blocks of rows."""
        start, num_rows = self.head.data_start + tensor.offset, math.prod(tensor.shape[:-1])
        row_bytes = tensor.num_bytes // num_rows if num_rows else 0
        for first in range(0, num_rows, _BLOCK_ROWS):
            last = min(first + _BLOCK_ROWS, num_rows)
            yield self.content[start + first * row_bytes : start + last * row_bytes]


def is_needed(head: GgufHead) -> bool:
    """Whether OpenVINO would round or refuse a tensor of this file."""
    return any(_new_kind(tensor) != tensor.kind or not _is_known(tensor) for tensor in head.tensors.values())


def rewrite(parts: Sequence[Path], target: Path, added: dict[str, str], progress: Progress = no_progress) -> None:
    """Write the tensors of all parts to one new file, with the first part's metadata and the ``added`` texts.

    Raises:
        OperatorError: a number does not fit the new type.
    """
    with ExitStack() as stack:
        opened = [_opened(path, stack) for path in parts]
        tensors = [(part, name, one) for part in opened for name, one in part.head.tensors.items() if _is_known(one)]
        alignment = opened[0].head.metadata.get("general.alignment", _ALIGNMENT)
        metadata = _metadata(opened[0], added)
        writer = stack.enter_context(new_file(target))
        writer.write(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata)) + b"".join(metadata))
        offset = 0
        for _, name, tensor in tensors:
            kind = _new_kind(tensor)
            writer.write(_entry(name, tensor, kind, offset))
            offset += _aligned(_num_bytes(tensor, kind), alignment)
        _pad(writer, alignment)
        for number, (part, _, tensor) in enumerate(tensors, start=1):
            for rows in part.rows(tensor):
                writer.write(_converted(rows, tensor))
            _pad(writer, alignment)
            progress(f"rewriting {target.name}", number, len(tensors))


def _opened(path: Path, stack: ExitStack) -> _Part:
    reader = stack.enter_context(open_regular(path))
    content = stack.enter_context(mmap.mmap(reader.fileno(), 0, access=mmap.ACCESS_READ))
    return _Part(content, read_head(path))


def _metadata(part: _Part, added: dict[str, str]) -> list[bytes]:
    """The new file's metadata: without split.*, and with general.file_type as most tensors are now."""
    entries = []
    for key, (start, end) in part.head.spans.items():
        if key == _FILE_TYPE_KEY and is_needed(part.head):
            entries.append(_text(key) + struct.pack("<II", _UINT32, _MOSTLY_Q8_0))
        elif not key.startswith("split."):
            entries.append(part.content[start:end])
    return entries + [_text(key) + struct.pack("<I", STRING) + _text(value) for key, value in added.items()]


def _entry(name: str, tensor: GgufTensor, kind: str, offset: int) -> bytes:
    """A tensor's entry in the head. On disk a shape has the row length first."""
    shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
    return _text(name) + shape + struct.pack("<IQ", _NUMBERS[kind], offset)


def _is_known(tensor: GgufTensor) -> bool:
    return tensor.number in TENSOR_TYPES


def _new_kind(tensor: GgufTensor) -> str:
    if tensor.kind in _AS_THEY_ARE or not _is_known(tensor):
        return tensor.kind
    return _WIDENED.get(tensor.kind, "Q8_0")


def _num_bytes(tensor: GgufTensor, kind: str) -> int:
    if kind == tensor.kind:
        return tensor.num_bytes
    _, block_bytes, block_values = TENSOR_TYPES[_NUMBERS[kind]]
    return math.prod(tensor.shape) // block_values * block_bytes


def _converted(rows: bytes, tensor: GgufTensor) -> bytes:
    """Rows, converted to their new type."""
    kind = _new_kind(tensor)
    if kind == tensor.kind:
        return rows
    import numpy as np  # noqa: PLC0415 - with gguf, half a second that most commands need not pay
    from gguf import GGMLQuantizationType, quants  # noqa: PLC0415 - see above

    if tensor.kind == "F64":
        return np.frombuffer(rows, dtype="<f8").astype(np.float32).tobytes()
    packed = np.frombuffer(rows, dtype=np.uint8).reshape(-1, tensor.num_bytes // math.prod(tensor.shape[:-1]))
    exact = quants.dequantize(packed, GGMLQuantizationType[tensor.kind])
    if kind == "F16" and np.abs(exact).max(initial=0) > _LARGEST_HALF:
        raise OperatorError(f"the {tensor.kind} weights are larger than F16 holds; use a q8_0 file of the model")
    changed: np.ndarray = quants.quantize(exact, GGMLQuantizationType[kind])
    return changed.tobytes()


def _text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _aligned(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _pad(writer: BinaryIO, alignment: int) -> None:
    writer.write(bytes(_aligned(writer.tell(), alignment) - writer.tell()))
