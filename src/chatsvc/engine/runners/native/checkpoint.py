"""Reads a checkpoint's shape and tensors from a GGUF file or a folder of safetensors, without any inference library.

Both are mapped, not read: a tensor's pages are touched when its rows are packed. What this runner cannot compute is
refused with the reason, so that another runner may serve it. Formats: ggml-org/ggml docs/gguf.md, and
huggingface/safetensors ("Format" in its README).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import msgspec
import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from chatsvc.engine.runners.native.library import GROUP, Matrix, Shape, Vector
from chatsvc.errors import OperatorError
from chatsvc.models import gguf

_HEAD_SIZES = (64, 128)
_SAFETENSORS_KINDS = frozenset({"F32", "F16", "BF16"})
# What no model has; beyond it a file would make sizes overflow.
_MOST_LAYERS, _WIDEST, _LARGEST_VOCABULARY = 1024, 1 << 18, 1 << 22


class NotServed(OperatorError):
    """Our forward pass does not compute what the model asks for."""

    code = "not_served"


@dataclass(frozen=True, slots=True)
class Tensor:
    """Rows of bytes as they lie in the file; ``kind`` is a name of the file's format."""

    kind: str
    rows: NDArray[np.uint8]


class Checkpoint(Protocol):
    """A model's files."""

    shape: Shape

    def matrix(self, matrix: Matrix, layer: int) -> Tensor:
        """Its rows as they are stored."""

    def vector(self, vector: Vector, layer: int) -> NDArray[np.float32]:
        """Its numbers."""


def open_checkpoint(path: Path) -> Checkpoint:
    """A ``.gguf`` file, or a folder with ``config.json`` and safetensors.

    Raises:
        NotServed: another runner may.
        OperatorError: the files are damaged.
    """
    try:
        checkpoint: Checkpoint = GgufCheckpoint(path) if path.is_file() else SafetensorsCheckpoint(path)
        _check(checkpoint.shape)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, msgspec.DecodeError) as error:
        raise OperatorError(f"{path.name} cannot be read as a checkpoint ({error}); import the model again") from error
    return checkpoint


def obstacle(path: Path) -> str:
    """What this runner does not compute of the model at ``path``; empty when it serves it.

    Raises:
        OperatorError: the files are damaged.
    """
    try:
        open_checkpoint(path)
    except NotServed as error:
        return error.message
    return ""


def _check(shape: Shape) -> None:
    widths = (shape.hidden_size, shape.intermediate_size, shape.num_heads * shape.head_size)
    counts = (shape.num_layers, shape.vocabulary_size, shape.num_heads, shape.num_kv_heads, *widths)
    if min(counts) < 1 or max(widths) > _WIDEST:
        raise ValueError("a size that no model has")
    if shape.num_layers > _MOST_LAYERS or shape.vocabulary_size > _LARGEST_VOCABULARY:
        raise ValueError("a size that no model has")
    if shape.head_size not in _HEAD_SIZES:
        raise NotServed(f"heads of {shape.head_size} numbers")
    if any(width % GROUP for width in widths):
        raise NotServed(f"layers that are no multiple of {GROUP} wide")
    if shape.num_heads % shape.num_kv_heads:
        raise NotServed("query heads that do not share KV heads evenly")
    if shape.is_interleaved and shape.has_bias:
        raise NotServed("biases of interleaved heads")


def _check_biases(names: Iterable[str], known: tuple[str, ...]) -> None:
    """A bias that nobody adds would be missing from every answer."""
    unknown = [name for name in names if name.endswith(".bias") and not name.endswith(known)]
    if unknown:
        raise NotServed(f"the bias {unknown[0]}")


class GgufCheckpoint:
    """A GGUF file of architecture ``llama`` or ``qwen2``."""

    _names: ClassVar = {
        Matrix.EMBEDDING: "token_embd",
        Matrix.HEAD: "output",
        Matrix.QUERY: "blk.{}.attn_q",
        Matrix.KEY: "blk.{}.attn_k",
        Matrix.VALUE: "blk.{}.attn_v",
        Matrix.OUTPUT: "blk.{}.attn_output",
        Matrix.GATE: "blk.{}.ffn_gate",
        Matrix.UP: "blk.{}.ffn_up",
        Matrix.DOWN: "blk.{}.ffn_down",
    }

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:  # unsealed weights are a link to a file in memory
            head = gguf.head_of(file, path.name)
            self._bytes = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)
        self._tensors = head.tensors
        self._data_start = head.data_start
        self.shape = self._shape(head)

    def _shape(self, head: gguf.GgufHead) -> Shape:
        architecture = head.get("general.architecture", str)
        if architecture not in ("llama", "qwen2"):
            raise NotServed(f"the architecture {architecture}")
        _check_biases(head.tensors, tuple(f"attn_{part}.bias" for part in "qkv"))
        values = {key.removeprefix(f"{architecture}."): value for key, value in head.metadata.items()}
        if values.get("rope.scaling.type", "none") != "none" or "rope_freqs.weight" in head.tensors:
            raise NotServed("a scaled rotary position embedding")
        num_heads = int(values["attention.head_count"])
        head_size = int(values.get("attention.key_length", values["embedding_length"] // num_heads))
        if int(values.get("rope.dimension_count", head_size)) != head_size:
            raise NotServed("a rotary position embedding of a part of each head")
        return Shape(
            hidden_size=int(values["embedding_length"]),
            intermediate_size=int(values["feed_forward_length"]),
            num_layers=int(values["block_count"]),
            num_heads=num_heads,
            num_kv_heads=int(values.get("attention.head_count_kv", num_heads)),
            head_size=head_size,
            vocabulary_size=int(head.tensors["token_embd.weight"].shape[0]),
            epsilon=float(values["attention.layer_norm_rms_epsilon"]),
            rope_base=float(values.get("rope.freq_base", 10_000.0)),
            has_bias="blk.0.attn_q.bias" in head.tensors,
            is_tied="output.weight" not in head.tensors,
            is_interleaved=architecture == "llama",
        )

    def matrix(self, matrix: Matrix, layer: int) -> Tensor:
        """See :class:`Checkpoint`."""
        return self._tensor(f"{self._names[matrix].format(layer)}.weight")

    def vector(self, vector: Vector, layer: int) -> NDArray[np.float32]:
        """See :class:`Checkpoint`."""
        if vector is Vector.BIAS:
            return np.concatenate([self._numbers(f"blk.{layer}.attn_{part}.bias") for part in "qkv"])
        name = {Vector.FINAL_NORM: "output_norm", Vector.ATTENTION_NORM: f"blk.{layer}.attn_norm"}
        return self._numbers(f"{name.get(vector, f'blk.{layer}.ffn_norm')}.weight")

    def _numbers(self, name: str) -> NDArray[np.float32]:
        tensor = self._tensor(name)
        return np.ascontiguousarray(dequantize(tensor.rows, GGMLQuantizationType[tensor.kind]).reshape(-1))

    def _tensor(self, name: str) -> Tensor:
        entry = self._tensors[name]
        start = self._data_start + entry.offset
        rows = entry.shape[0] if len(entry.shape) > 1 else 1
        return Tensor(entry.kind, self._bytes[start : start + entry.num_bytes].reshape(rows, -1))


class SafetensorsCheckpoint:
    """A folder of ``model_type`` ``llama`` or ``qwen2``."""

    _names: ClassVar = {
        Matrix.EMBEDDING: "model.embed_tokens",
        Matrix.HEAD: "lm_head",
        Matrix.QUERY: "model.layers.{}.self_attn.q_proj",
        Matrix.KEY: "model.layers.{}.self_attn.k_proj",
        Matrix.VALUE: "model.layers.{}.self_attn.v_proj",
        Matrix.OUTPUT: "model.layers.{}.self_attn.o_proj",
        Matrix.GATE: "model.layers.{}.mlp.gate_proj",
        Matrix.UP: "model.layers.{}.mlp.up_proj",
        Matrix.DOWN: "model.layers.{}.mlp.down_proj",
    }

    def __init__(self, folder: Path) -> None:
        self._tensors: dict[str, Tensor] = {}
        for path in sorted(folder.glob("*.safetensors")):
            self._tensors |= _map_safetensors(path)
        config: dict[str, Any] = msgspec.json.decode((folder / "config.json").read_bytes(), type=dict[str, Any])
        self.shape = self._shape(config)

    def _shape(self, config: Mapping[str, Any]) -> Shape:
        if config["model_type"] not in ("llama", "qwen2") or config.get("hidden_act", "silu") != "silu":
            raise NotServed(f"the architecture {config['model_type']}")
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            raise NotServed("a scaled rotary position embedding")
        if config.get("use_sliding_window"):
            raise NotServed("sliding windows")
        _check_biases(self._tensors, tuple(f"self_attn.{part}_proj.bias" for part in "qkv"))
        num_heads = int(config["num_attention_heads"])
        return Shape(
            hidden_size=int(config["hidden_size"]),
            intermediate_size=int(config["intermediate_size"]),
            num_layers=int(config["num_hidden_layers"]),
            num_heads=num_heads,
            num_kv_heads=int(config.get("num_key_value_heads") or num_heads),
            head_size=int(config.get("head_dim") or config["hidden_size"] // num_heads),
            vocabulary_size=int(config["vocab_size"]),
            epsilon=float(config["rms_norm_eps"]),
            rope_base=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
            has_bias="model.layers.0.self_attn.q_proj.bias" in self._tensors,
            is_tied="lm_head.weight" not in self._tensors,
        )

    def matrix(self, matrix: Matrix, layer: int) -> Tensor:
        """See :class:`Checkpoint`."""
        return self._tensors[f"{self._names[matrix].format(layer)}.weight"]

    def vector(self, vector: Vector, layer: int) -> NDArray[np.float32]:
        """See :class:`Checkpoint`."""
        prefix = f"model.layers.{layer}"
        if vector is Vector.BIAS:
            return np.concatenate([self._numbers(f"{prefix}.self_attn.{part}_proj.bias") for part in "qkv"])
        name = {Vector.FINAL_NORM: "model.norm", Vector.ATTENTION_NORM: f"{prefix}.input_layernorm"}
        return self._numbers(f"{name.get(vector, f'{prefix}.post_attention_layernorm')}.weight")

    def _numbers(self, name: str) -> NDArray[np.float32]:
        tensor = self._tensors[name]
        if tensor.kind == "BF16":
            return (tensor.rows.reshape(-1).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        kind = np.float16 if tensor.kind == "F16" else np.float32
        return tensor.rows.reshape(-1).view(kind).astype(np.float32)


def _map_safetensors(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        content = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)
    start = 8 + int(content[:8].view("<u8")[0])
    head: dict[str, Any] = msgspec.json.decode(content[8:start].tobytes(), type=dict[str, Any])
    tensors = {}
    for name, entry in head.items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            rows = entry["shape"][0] if len(entry["shape"]) > 1 else 1
            if entry["dtype"] not in _SAFETENSORS_KINDS:
                raise NotServed(f"numbers of type {entry['dtype']}")
            tensors[name] = Tensor(entry["dtype"], content[start + first : start + last].reshape(rows, -1))
    return tensors
