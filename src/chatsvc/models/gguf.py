"""Reads the head of a GGUF file: metadata and the list of tensors, from bytes nobody vouches for.

Every length is checked against the file before it is used. Only little-endian versions 2 and 3, and only the tensor
types that both GGUF runners load. (The ``gguf`` package reads a tokenizer of 150,000 tokens in about ten seconds;
this takes well under one. Its answers are the oracle in the tests.) Format: ggml-org/ggml, docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from chatsvc.errors import OperatorError
from chatsvc.models.files import BLOCK_BYTES, Progress, new_file, no_progress, open_regular, sha256_of

_MAGIC = b"GGUF"
_MAX_ITEMS = 4_000_000
_MAX_DIMENSIONS = 8
_ALIGNMENT = 32
_STRING, _ARRAY, _BOOL = 8, 9, 7
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "?", 10: "Q", 11: "q", 12: "d"}

# tensor type -> (name, bytes a block, values a block): what OpenVINO GenAI's GGUF reader takes.
TENSOR_TYPES = {
    0: ("F32", 4, 1),
    1: ("F16", 2, 1),
    2: ("Q4_0", 18, 32),
    3: ("Q4_1", 20, 32),
    8: ("Q8_0", 34, 32),
    12: ("Q4_K", 144, 256),
    14: ("Q6_K", 210, 256),
}

T = TypeVar("T")


class GgufInvalid(OperatorError):
    """The file is no GGUF file, is damaged, or is of a kind that is not served."""

    code = "gguf_invalid"


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor's type, its shape with the number of rows first, and where in the data its bytes are."""

    kind: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHead:
    """Metadata by key (arrays are lists), the tensors by name, and where these parts end in the file."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    metadata_end: int
    tensors_end: int
    data_start: int

    def get(self, key: str, kind: type[T]) -> T:
        """A metadata value of the type it must have.

        Raises:
            GgufInvalid: it is missing or of another type.
        """
        value = self.metadata.get(key)
        if not isinstance(value, kind):
            raise GgufInvalid(f"the GGUF file has no usable {key}; use a file made by a current llama.cpp")
        return value


def read_head(path: Path) -> GgufHead:
    """Read and check the head of ``path``; also that all tensors lie inside the file.

    Raises:
        GgufInvalid: see above.
        OSError: it cannot be opened.
    """
    with open_regular(path) as file:
        return head_of(file, path.name)


def head_of(file: IO[bytes], name: str) -> GgufHead:
    """The same, of a file that is open: one in memory has no path that ``read_head`` takes.

    Raises:
        GgufInvalid: see above.
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


def copy_with_text(source: Path, target: Path, key: str, value: str, progress: Progress = no_progress) -> str:
    """Copy a GGUF file with one more text in its metadata; returns the copy's SHA-256 in hex.

    The tensors' offsets count from the start of the data, so they stay as they are.
    """
    head = read_head(source)
    added = _text(key) + struct.pack("<I", _STRING) + _text(value)
    padding = _aligned(head.tensors_end + len(added), head.metadata.get("general.alignment", _ALIGNMENT))
    with open_regular(source) as reader, new_file(target) as writer:
        fixed, num_tensors, num_values = struct.unpack("<8sQQ", reader.read(24))
        writer.write(struct.pack("<8sQQ", fixed, num_tensors, num_values + 1))
        writer.write(reader.read(head.metadata_end - 24) + added)
        writer.write(reader.read(head.tensors_end - head.metadata_end))
        writer.write(bytes(padding - writer.tell()))
        reader.seek(head.data_start)
        total = os.fstat(reader.fileno()).st_size
        while block := reader.read(BLOCK_BYTES):
            writer.write(block)
            progress(f"copying {target.name}", reader.tell(), total)
        writer.flush()
        return sha256_of(writer)


def _text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


class _Reader:
    """A position in the bytes; struct refuses to read past their end."""

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
        metadata = {self._string(): self._value(self._number("I")) for _ in range(self._count())}
        metadata_end = self._at
        tensors = dict(self._tensor() for _ in range(num_tensors))
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
            raise GgufInvalid("the GGUF file is damaged; fetch it again")
        data_start = _aligned(self._at, alignment)
        if any(data_start + one.offset + one.num_bytes > len(self._content) for one in tensors.values()):
            raise GgufInvalid("the GGUF file is cut off: tensors end behind its end; fetch it again")
        return GgufHead(metadata, tensors, metadata_end, self._at, data_start)

    def _tensor(self) -> tuple[str, GgufTensor]:
        name = self._string()
        shape = tuple(self._number("Q") for _ in range(self._dimensions()))[::-1]
        number, offset = self._number("I"), self._number("Q")
        if number not in TENSOR_TYPES:
            known = ", ".join(kind for kind, _, _ in TENSOR_TYPES.values())
            raise GgufInvalid(
                f"tensor {name!r} has quantisation type {number}, which is not served; "
                f"use a file quantised to one of {known} (a q8_0 or q4_k_m file)"
            )
        kind, block_bytes, block_values = TENSOR_TYPES[number]
        return name, GgufTensor(kind, shape, offset, math.prod(shape) // block_values * block_bytes)

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._number(self._code(kind))
        inner, length = self._number("I"), self._count()
        if inner == _STRING:
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

    def _string(self) -> str:
        length = self._count(most=1 << 26)
        start, self._at = self._at, self._at + length
        if self._at > len(self._content):
            raise IndexError
        return self._content[start : self._at].decode("utf-8")

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
