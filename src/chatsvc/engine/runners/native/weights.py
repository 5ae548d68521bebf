"""Reads a model's shape and tensors from a GGUF file or a folder of safetensors, without any inference library.

Both are memory-mapped: a tensor is read when its rows are packed. A model that this runner cannot compute is refused
with the reason, so that another runner may serve it. Formats: ggml-org/ggml docs/gguf.md, and
huggingface/safetensors ("Format" in its README).
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from chatsvc.engine.runners.native.library import GROUP, Matrix, Shape, Vector
from chatsvc.errors import OperatorError
from chatsvc.models.formats import decoder, gguf, safetensors
from chatsvc.models.formats.architectures import gguf_name, safetensors_name
from chatsvc.models.formats.decoder import Decoder
from chatsvc.models.formats.rope import NotServed

_HEAD_SIZES = (64, 128)
# Of GGUF's types those that are unpacked here or by the gguf package; the C code reads some as they are stored.
_GGUF_KINDS = frozenset(
    {"F64", "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}
    | {"IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"}
)
# No model is larger; a damaged file that says so would make sizes overflow.
_MOST_LAYERS, _WIDEST, _LARGEST_VOCABULARY = 1024, 1 << 18, 1 << 22


@dataclass(frozen=True, slots=True)
class Tensor:
    """(rows, bytes) as stored; ``kind`` is the number type in the file format's words."""

    kind: str
    rows: NDArray[np.uint8]


class Weights(Protocol):
    """A model's files. ``max_tokens`` of a sequence are computed right; 0: as many as it was trained for."""

    shape: Shape
    max_tokens: int

    def matrix(self, matrix: Matrix, layer: int) -> Tensor:
        """Its rows as they are stored."""

    def vector(self, vector: Vector, layer: int) -> NDArray[np.float32]:
        """Its numbers."""


def open_weights(path: Path) -> Weights:
    """A ``.gguf`` file, or a folder with ``config.json`` and safetensors.

    Raises:
        NotServed: this runner does not compute it; another may.
        OperatorError: the files are damaged.
    """
    try:
        return _of_gguf(path) if path.is_file() else _of_safetensors(path)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, msgspec.DecodeError) as error:
        raise OperatorError(
            f"{path.name} is damaged and cannot be read ({error}); import another copy of it"
        ) from error


def obstacle(path: Path) -> str:
    """What this runner does not compute of the model at ``path``; empty when it serves it.

    Raises:
        OperatorError: the files are damaged.
    """
    try:
        open_weights(path)
    except NotServed as error:
        return error.message
    return ""


def unpacked(tensor: Tensor) -> NDArray[np.float32]:
    """A tensor's numbers, (rows, numbers of a row)."""
    if tensor.kind == "F64":
        return tensor.rows.view("<f8").astype(np.float32)
    numbers: NDArray[np.float32] = dequantize(tensor.rows, GGMLQuantizationType[tensor.kind])
    return numbers


def _shape_of(what: Decoder) -> Shape:
    """The shape for the C code.

    Raises:
        NotServed: our forward pass does not compute what the decoder asks for.
        ValueError: no model has such sizes.
    """
    widths = (what.hidden_size, what.intermediate_size, what.num_heads * what.head_size)
    counts = (what.num_layers, what.vocabulary_size, what.num_heads, what.num_kv_heads, *widths)
    if min(counts) < 1 or max(widths) > _WIDEST or what.num_kv_heads > what.num_heads:
        raise ValueError("a size that no model has")
    if what.num_layers > _MOST_LAYERS or what.vocabulary_size > _LARGEST_VOCABULARY:
        raise ValueError("a size that no model has")
    if what.head_size not in _HEAD_SIZES:
        raise NotServed(f"heads of {what.head_size} numbers")
    if any(width % GROUP for width in widths):
        raise NotServed(f"layers that are no multiple of {GROUP} wide")
    if what.num_heads % what.num_kv_heads:
        raise NotServed("query heads that do not share KV heads evenly")
    if others := what.biases - {"qkv"}:
        raise NotServed(f"a bias of the {min(others)}")
    assert not (what.has_qk_norm and what.is_interleaved)  # no architecture has both; the norms' order would differ
    return Shape(
        hidden_size=what.hidden_size,
        intermediate_size=what.intermediate_size,
        num_layers=what.num_layers,
        num_heads=what.num_heads,
        num_kv_heads=what.num_kv_heads,
        head_size=what.head_size,
        vocabulary_size=what.vocabulary_size,
        epsilon=what.epsilon,
        rope_frequencies=what.rope.frequencies,
        rope_factor=what.rope.attention_factor,
        has_bias="qkv" in what.biases,
        is_tied=what.is_tied,
        is_interleaved=what.is_interleaved,
        has_qk_norm=what.has_qk_norm,
        layers_without_rope=what.layers_without_rope,
    )


class FileWeights:
    """Tensors of files, found by the names that their format gives to the parts of a model."""

    def __init__(self, what: Decoder, tensors: Mapping[str, Tensor], name_of: Callable[..., str]) -> None:
        self.shape = _shape_of(what)
        self.max_tokens = what.window
        self._tensors = tensors
        self._name_of = name_of

    def matrix(self, matrix: Matrix, layer: int) -> Tensor:
        """See :class:`Weights`."""
        return self._tensors[self._name_of(matrix.name.lower(), layer)]

    def vector(self, vector: Vector, layer: int) -> NDArray[np.float32]:
        """See :class:`Weights`."""
        if vector is Vector.BIAS:
            names = [self._name_of(part, layer, "bias") for part in ("query", "key", "value")]
        else:
            names = [self._name_of(vector.name.lower(), layer)]
        return np.concatenate([unpacked(self._tensors[name]).reshape(-1) for name in names])


def _of_gguf(path: Path) -> FileWeights:
    with path.open("rb") as file:  # unsealed weights are a link to a file in memory
        head = gguf.head_of(file, path.name)
        content = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)
        what = decoder.of_gguf(head, gguf.read_floats(file, head, decoder.ROPE_FACTORS))
    if unknown := what.kinds - _GGUF_KINDS:
        raise NotServed(f"numbers of type {min(unknown)}")
    used = decoder.used_in_gguf(head.tensors, decoder.gguf_architecture(what.architecture))
    tensors = {name: _slice(content[head.data_start :], head.tensors[name]) for name in used}
    return FileWeights(what, tensors, gguf_name)


def _slice(data: NDArray[np.uint8], tensor: gguf.GgufTensor) -> Tensor:
    rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
    return Tensor(tensor.kind, data[tensor.offset : tensor.offset + tensor.num_bytes].reshape(rows, -1))


def _of_safetensors(folder: Path) -> FileWeights:
    config: dict[str, Any] = msgspec.json.decode((folder / "config.json").read_bytes(), type=dict[str, Any])
    tensors = safetensors.used(safetensors.tensors_of(folder))
    what = decoder.of_config(config, tensors.keys(), frozenset(tensor.kind for tensor in tensors.values()))
    if unknown := what.kinds - safetensors.NUMBER_BYTES.keys():
        raise NotServed(f"numbers of type {min(unknown)}")
    return FileWeights(what, {name: _mapped(tensor) for name, tensor in tensors.items()}, safetensors_name)


def _mapped(tensor: safetensors.StoredTensor) -> Tensor:
    rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
    content = np.memmap(tensor.path, dtype=np.uint8, mode="r", offset=tensor.start, shape=(tensor.num_bytes,))
    return Tensor(tensor.kind, content.reshape(rows, -1))
