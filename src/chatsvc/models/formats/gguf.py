"""Reads the head of an untrusted GGUF file: metadata and the list of tensors.

Every length is checked against the file before it is used. Supports little-endian versions 2 and 3. Unused entries may
be malformed: text that is not UTF-8 stays bytes, a tensor of an unknown type has size 0; code that needs such an entry
refuses it. (The ``gguf`` package takes about ten seconds for a tokenizer of 150,000 tokens, this reader well under one.
The tests compare the two.) Format: ggml-org/ggml, docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from chatsvc.disk.files import open_regular
from chatsvc.errors import OperatorError

_MAGIC = b"GGUF"
_MAX_ITEMS = 4_000_000
_MAX_DIMENSIONS = 8
_MAX_SMALL_TENSOR_BYTES = 1 << 16
_ALIGNMENT = 32
STRING = 8
_ARRAY, _BOOL = 9, 7
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "?", 10: "Q", 11: "q", 12: "d"}

# Tensor type -> (name, bytes of a block, values of a block). Source: ggml's ``ggml_type`` and its block structures.
TENSOR_TYPES = {
    0: ("F32", 4, 1),
    1: ("F16", 2, 1),
    2: ("Q4_0", 18, 32),
    3: ("Q4_1", 20, 32),
    6: ("Q5_0", 22, 32),
    7: ("Q5_1", 24, 32),
    8: ("Q8_0", 34, 32),
    10: ("Q2_K", 84, 256),
    11: ("Q3_K", 110, 256),
    12: ("Q4_K", 144, 256),
    13: ("Q5_K", 176, 256),
    14: ("Q6_K", 210, 256),
    16: ("IQ2_XXS", 66, 256),
    17: ("IQ2_XS", 74, 256),
    18: ("IQ3_XXS", 98, 256),
    19: ("IQ1_S", 50, 256),
    20: ("IQ4_NL", 18, 32),
    21: ("IQ3_S", 110, 256),
    22: ("IQ2_S", 82, 256),
    23: ("IQ4_XS", 136, 256),
    28: ("F64", 8, 1),
    30: ("BF16", 2, 1),
}

T = TypeVar("T")


class GgufInvalid(OperatorError):
    """Not a GGUF file, damaged, or of an unsupported kind."""

    code = "gguf_invalid"


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor: its type, its shape (rows first), and the offset of its bytes from ``data_start``.

    ``number`` is the type's number in the file, ``kind`` its name. For a type missing from :data:`TENSOR_TYPES` the
    name is made of the number, and ``num_bytes`` is 0.
    """

    number: int
    kind: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHead:
    """Metadata by key (arrays are lists), tensors by name, and where these sections end in the file.

    ``spans`` holds for each metadata key the byte range of its entry: (start, end), end exclusive.
    """

    metadata: dict[str, Any]
    spans: dict[str, tuple[int, int]]
    tensors: dict[str, GgufTensor]
    metadata_end: int
    tensors_end: int
    data_start: int

    def get(self, key: str, kind: type[T]) -> T:
        """A metadata value, checked to be of type ``kind``.

        Raises:
            GgufInvalid: missing, or of another type.
        """
        value = self.metadata.get(key)
        is_broken = isinstance(value, list) and any(isinstance(item, bytes) for item in value)
        if not isinstance(value, kind) or is_broken:
            raise GgufInvalid(f"the GGUF file has no usable {key}; use a file made by a current llama.cpp")
        return value


def read_head(path: Path) -> GgufHead:
    """Read and check the head of ``path``, including that all tensors lie inside the file.

    Raises:
        GgufInvalid: the file is not usable.
        OSError: it cannot be opened.
    """
    with open_regular(path) as file:
        return head_of(file, path.name)


def head_of(file: IO[bytes], name: str) -> GgufHead:
    """As :func:`read_head`, for an open file: a file in memory has no regular path.

    Raises:
        GgufInvalid: the file is not usable.
    """
    try:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError as error:  # an empty file
        raise GgufInvalid(f"{name} is empty") from error
    with content:
        try:
            return _Reader(content).head()
        except (struct.error, IndexError, UnicodeDecodeError) as error:
            raise GgufInvalid(f"{name} is damaged or cut off; fetch it again") from error


def read_floats(file: IO[bytes], head: GgufHead, name: str) -> list[float] | None:
    """The values of a small F32 tensor; None where the file lacks it.

    Raises:
        GgufInvalid: it is of another type, or larger than 64 KiB.
    """
    tensor = head.tensors.get(name)
    if tensor is None:
        return None
    if tensor.kind != "F32" or tensor.num_bytes > _MAX_SMALL_TENSOR_BYTES:
        raise GgufInvalid(f"the tensor {name} is not a small one of type F32, which is all that is served")
    file.seek(head.data_start + tensor.offset)
    return list(struct.unpack(f"<{tensor.num_bytes // 4}f", file.read(tensor.num_bytes)))


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


class _Reader:
    """A read position in the file's bytes; struct raises at their end."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._at = 0

    def head(self) -> GgufHead:
        if self._content[:4] != _MAGIC:
            raise GgufInvalid("this is not a GGUF file")
        self._at = 4
        version = self._number("I")
        if version not in (2, 3):
            raise GgufInvalid("only little-endian GGUF files of version 2 or 3 are served; convert it with llama.cpp")
        num_tensors = self._count()
        metadata: dict[str, Any] = {}
        spans: dict[str, tuple[int, int]] = {}
        for _ in range(self._count()):
            start, key = self._at, self._key()
            metadata[key] = self._value(self._number("I"))
            spans[key] = (start, self._at)
        metadata_end = self._at
        tensors = dict(self._tensor() for _ in range(num_tensors))
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20 or len(tensors) != num_tensors:
            raise GgufInvalid("the GGUF file is damaged; fetch it again")
        data_start = _aligned(self._at, alignment)
        if any(data_start + one.offset + one.num_bytes > len(self._content) for one in tensors.values()):
            raise GgufInvalid("the GGUF file is cut off: tensors end behind its end; fetch it again")
        return GgufHead(metadata, spans, tensors, metadata_end, self._at, data_start)

    def _tensor(self) -> tuple[str, GgufTensor]:
        name = self._key()
        shape = tuple(self._number("Q") for _ in range(self._dimensions()))[::-1]
        number, offset = self._number("I"), self._number("Q")
        if number not in TENSOR_TYPES:
            return name, GgufTensor(number, f"number {number}", shape, offset, 0)
        kind, block_bytes, block_values = TENSOR_TYPES[number]
        if shape and shape[-1] % block_values:
            raise GgufInvalid(f"the GGUF file is damaged: a row of {name!r} is no multiple of a block; fetch it again")
        return name, GgufTensor(number, kind, shape, offset, math.prod(shape) // block_values * block_bytes)

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind != _ARRAY:
            return self._number(self._code(kind))
        inner, length = self._number("I"), self._count()
        if inner == STRING:
            return [self._string() for _ in range(length)]
        layout = struct.Struct(f"<{length}{self._code(inner)}")
        values = list(layout.unpack_from(self._content, self._at))
        self._at += layout.size
        return values

    @staticmethod
    def _code(kind: int) -> str:
        if kind not in _NUMBERS:
            raise GgufInvalid("the GGUF file is damaged; fetch it again")
        return _NUMBERS[kind]

    def _key(self) -> str:
        return self._bytes().decode("utf-8")

    def _string(self) -> str | bytes:
        """Text, or bytes where it is not UTF-8: some files carry descriptions in older encodings."""
        content = self._bytes()
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            return content

    def _bytes(self) -> bytes:
        length = self._count(most=1 << 26)
        start, self._at = self._at, self._at + length
        if self._at > len(self._content):
            raise IndexError
        return self._content[start : self._at]

    def _count(self, most: int = _MAX_ITEMS) -> int:
        count: int = self._number("Q")
        if count > most:
            raise GgufInvalid("the GGUF file is damaged: it claims more than any model has; fetch it again")
        return count

    def _dimensions(self) -> int:
        count: int = self._number("I")
        if count > _MAX_DIMENSIONS:
            raise GgufInvalid("the GGUF file is damaged: it claims more than any model has; fetch it again")
        return count

    def _number(self, code: str) -> Any:
        layout = struct.Struct(f"<{code}")
        value = layout.unpack_from(self._content, self._at)[0]
        self._at += layout.size
        return value
