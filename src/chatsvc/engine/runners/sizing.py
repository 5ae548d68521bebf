"""Computes how much memory a model takes and how large its KV cache may be. Reads only the heads of files.

Measured with OpenVINO: the process takes about 260 MB besides the weights (libraries, activations of a chunk, card);
weights are repacked into as much memory as their file; a cached token takes, for each layer and KV head, a byte for
every number of key and value (half a one for the value's, where the weights are int4), 8 bytes of scale for the value
and, over a block of 32, 8 bytes for every channel of the key. Cache pages take memory only once they are used, but a
budget counts them all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatsvc.engine.runners.base import RunnerOptions
from chatsvc.engine.runners.openvino.prefixes import BLOCK_TOKENS
from chatsvc.errors import OperatorError
from chatsvc.models.formats import gguf

MIB = 1024 * 1024
_PROCESS_BYTES = 260 * MIB
_WEIGHTS_FACTOR = 1.05
_LEAST_CONTEXT_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The values that determine the size of a cached token."""

    num_layers: int
    num_kv_heads: int
    head_size: int
    value_bits: int = 8

    @property
    def block_bytes(self) -> int:
        """The KV cache of one block of tokens; a number of a key has 8 bits."""
        key_bytes = self.head_size * (BLOCK_TOKENS + 8)
        value_bytes = (self.head_size * self.value_bits // 8 + 8) * BLOCK_TOKENS
        return self.num_layers * self.num_kv_heads * (key_bytes + value_bytes)


def shape_of(path: Path) -> ModelShape:
    """The shape of the model at ``path``: a ``.gguf`` file, or a folder with ``config.json``.

    Raises:
        OperatorError: neither says it.
    """
    try:
        return _shape_of_gguf(path) if path.is_file() else _shape_of_config(path / "config.json")
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise OperatorError(
            f"The size of {path.name} cannot be told from its files; import another copy of it."
        ) from error


def _shape_of_gguf(path: Path) -> ModelShape:
    with path.open("rb") as file:  # unsealed weights are a link to a file in memory
        head = gguf.head_of(file, path.name)
    name = head.get("general.architecture", str)
    num_heads = head.get(f"{name}.attention.head_count", int)
    num_kv_heads = head.metadata.get(f"{name}.attention.head_count_kv", num_heads)
    head_size = head.metadata.get(
        f"{name}.attention.key_length", head.get(f"{name}.embedding_length", int) // num_heads
    )
    return ModelShape(head.get(f"{name}.block_count", int), int(num_kv_heads), int(head_size))


def _shape_of_config(path: Path) -> ModelShape:
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    num_heads = int(config["num_attention_heads"])
    return ModelShape(
        num_layers=int(config["num_hidden_layers"]),
        num_kv_heads=int(config.get("num_key_value_heads") or num_heads),
        head_size=int(config.get("head_dim") or config["hidden_size"] // num_heads),
        value_bits=value_bits_of(path.parent),
    )


def value_bits_of(path: Path) -> int:
    """Bits of each number of a cached value: 4 for int4 models, which are converted to be small, else 8."""
    graph = path / "openvino_model.xml"
    text = graph.read_text(encoding="utf-8") if graph.exists() else ""
    return 4 if 'element_type="u4"' in text or 'element_type="i4"' in text else 8


def weights_bytes(path: Path) -> int:
    """The size of the weight files."""
    files = [path] if path.is_file() else [*path.glob("*.bin"), *path.glob("*.safetensors")]
    return sum(file.stat().st_size for file in files)


def num_kv_blocks(shape: ModelShape, num_weights_bytes: int, context_length: int, options: RunnerOptions) -> int:
    """Blocks of OpenVINO's KV cache.

    Raises:
        OperatorError: the model does not fit.
    """
    fixed_bytes = int(num_weights_bytes * _WEIGHTS_FACTOR) + _PROCESS_BYTES
    return num_cache_blocks(shape.block_bytes, fixed_bytes, context_length, options)


def num_cache_blocks(block_bytes: int, fixed_bytes: int, context_length: int, options: RunnerOptions) -> int:
    """Blocks of a KV cache: the configured size, but no more than the memory limit leaves besides ``fixed_bytes``.

    Raises:
        OperatorError: the limit leaves less than one sequence needs; the message says how much would do.
    """
    wanted = int(options.cache_size_gb * 1024 * MIB) // block_bytes
    least = -(-min(context_length, _LEAST_CONTEXT_TOKENS) // BLOCK_TOKENS)
    if not options.memory_limit_mb:
        return max(wanted, least)
    left = (options.memory_limit_mb * MIB - fixed_bytes) // block_bytes
    if left < least:
        needed_mb = (fixed_bytes + least * block_bytes) // MIB + 1
        raise OperatorError(
            f"The model does not fit into engine.memory_limit_mb = {options.memory_limit_mb}: it needs {needed_mb} MB "
            "with the smallest useful cache. Raise the limit to at least that, or activate a smaller model."
        )
    return max(min(wanted, left), least)


def check_limit(taken_bytes: int, cache_bytes: int, options: RunnerOptions) -> None:
    """Check that the memory of a warm runner, without cache, plus the whole cache stays below the limit.

    Raises:
        OperatorError: they do not.
    """
    needed_mb = (taken_bytes + cache_bytes) // MIB
    if options.memory_limit_mb and needed_mb > options.memory_limit_mb:
        raise OperatorError(
            f"The model does not fit into engine.memory_limit_mb = {options.memory_limit_mb}: it takes {needed_mb} "
            "MB. Raise the limit to at least that, lower engine.cache_size_gb, or activate a smaller model."
        )
