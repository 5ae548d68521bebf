"""Finds NaN and infinity among weights without computing their values: by exponents, or by the scales of blocks.

One pass over the tensors in use. In a quantised block only the scales can be NaN or infinite. Layouts:
ggml-org/ggml, ``src/ggml-common.h``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatsvc.disk.files import Progress, no_progress
from chatsvc.errors import OperatorError
from chatsvc.models.formats import decoder, gguf, safetensors

# Type -> unsigned integer of its size, and the exponent's bits: all set in NaN and infinity.
_EXPONENTS: dict[str, tuple[str, np.unsignedinteger[Any]]] = {
    "F64": ("<u8", np.uint64(0x7FF0_0000_0000_0000)),
    "F32": ("<u4", np.uint32(0x7F80_0000)),
    "F16": ("<u2", np.uint16(0x7C00)),
    "BF16": ("<u2", np.uint16(0x7F80)),
}
# Type -> bytes of a block, and the offsets of its scales, each an IEEE half.
_SCALES = {
    "Q4_0": (18, (0,)),
    "Q4_1": (20, (0, 2)),
    "Q5_0": (22, (0,)),
    "Q5_1": (24, (0, 2)),
    "Q8_0": (34, (0,)),
    "Q2_K": (84, (80, 82)),
    "Q3_K": (110, (108,)),
    "Q4_K": (144, (0, 2)),
    "Q5_K": (176, (0, 2)),
    "Q6_K": (210, (208,)),
    "IQ2_XXS": (66, (0,)),
    "IQ2_XS": (74, (0,)),
    "IQ2_S": (82, (0,)),
    "IQ3_XXS": (98, (0,)),
    "IQ3_S": (110, (0,)),
    "IQ1_S": (50, (0,)),
    "IQ4_NL": (18, (0,)),
    "IQ4_XS": (136, (0,)),
}
_BLOCK_BYTES = 1 << 26


def check_gguf(path: Path, progress: Progress = no_progress) -> None:
    """Check one GGUF file.

    Raises:
        OperatorError: a weight is NaN or infinite.
    """
    head = gguf.read_head(path)
    names = decoder.used_in_gguf(head.tensors, decoder.gguf_architecture(head.get("general.architecture", str)))
    for number, name in enumerate(names, start=1):
        tensor = head.tensors[name]
        _check(path, name, tensor.kind, head.data_start + tensor.offset, tensor.num_bytes)
        progress("checking weights for NaN and infinity", number, len(names))


def check_safetensors(folder: Path, progress: Progress = no_progress) -> None:
    """Check a folder of safetensors.

    Raises:
        OperatorError: a weight is NaN or infinite.
    """
    tensors = safetensors.used(safetensors.tensors_of(folder))
    for number, (name, tensor) in enumerate(tensors.items(), start=1):
        _check(tensor.path, name, tensor.kind, tensor.start, tensor.num_bytes)
        progress("checking weights for NaN and infinity", number, len(tensors))


def _check(path: Path, name: str, kind: str, start: int, num_bytes: int) -> None:
    block = _BLOCK_BYTES - _BLOCK_BYTES % _SCALES.get(kind, (8,))[0]
    with path.open("rb") as file:
        file.seek(start)
        for first in range(0, num_bytes, block):
            content = np.fromfile(file, dtype=np.uint8, count=min(block, num_bytes - first))
            if not is_finite(kind, content):
                raise OperatorError(
                    f"the tensor {name[:200]} of {path.name} holds numbers that are not finite (NaN or infinity), so "
                    "the model could not answer; use another copy of it"
                )


def is_finite(kind: str, content: NDArray[np.uint8]) -> bool:
    """Whether all numbers of a tensor are finite.

    Args:
        kind: the type's name in safetensors or GGUF; unknown types pass.
        content: the tensor's bytes, whole blocks.
    """
    if kind in _EXPONENTS:
        layout, mask = _EXPONENTS[kind]
        return not bool(((content.view(layout) & mask) == mask).any())
    if kind in _SCALES:
        size, places = _SCALES[kind]
        blocks = content.reshape(-1, size)
        return all(is_finite("F16", np.ascontiguousarray(blocks[:, at : at + 2]).reshape(-1)) for at in places)
    return True
