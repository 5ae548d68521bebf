"""The compiled forward pass, called through ctypes, which releases the GIL during a call.

Structs and enums mirror ``csrc/model.h``; they are compared with the library when it is loaded.
Knows nothing about sequences, sampling or where weights come from.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatsvc.engine.runners.masks import Mask, as_rows
from chatsvc.errors import OperatorError

PAGE_TOKENS = 32
GROUP = 64
# model_phase of csrc/model.h, in its order.
PHASES = ("embedding", "rounding", "q, k, v", "heads", "attention", "output", "gate, up", "down", "vocabulary")
_LANES = 16
_PATH = Path(__file__).with_name("_native.so")
_NEEDED_FLAGS = frozenset({"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"})

Floats = NDArray[np.float32]
Ids = NDArray[np.int32]
Masks = Sequence[Mask | None]


class Number(IntEnum):
    """How numbers are stored in a weight file."""

    FLOAT32 = 0
    FLOAT16 = 1
    BFLOAT16 = 2
    Q8_0 = 3


class Matrix(IntEnum):
    """A weight matrix; from ``QUERY`` on, one of each layer."""

    EMBEDDING = 0
    HEAD = 1
    QUERY = 2
    KEY = 3
    VALUE = 4
    OUTPUT = 5
    GATE = 6
    UP = 7
    DOWN = 8


class Vector(IntEnum):
    """A weight vector; all but the first, one of each layer. ``BIAS`` is that of queries, keys and values, joined.

    ``MEAN_KEY_BIAS`` is in no file (balancing.py).
    """

    FINAL_NORM = 0
    ATTENTION_NORM = 1
    MLP_NORM = 2
    BIAS = 3
    MEAN_KEY_BIAS = 4
    QUERY_NORM = 5
    KEY_NORM = 6


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder of Llama's family, as :class:`chatsvc.models.formats.decoder.Decoder` describes it."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    vocabulary_size: int
    epsilon: float
    rope_frequencies: Sequence[float]
    rope_factor: float
    has_bias: bool
    is_tied: bool
    is_interleaved: bool = False
    has_qk_norm: bool = False
    layers_without_rope: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Capacity:
    """Fixed at load: tokens of a sequence, rows (tokens) of a batch, pages of the KV cache, threads."""

    max_tokens: int
    max_rows: int
    num_pages: int
    num_threads: int


@dataclass(frozen=True, slots=True)
class Rows:
    """The next token ids of one sequence, from position ``start`` on; ``pages`` are its cache pages, in order."""

    ids: Sequence[int]
    start: int
    pages: Sequence[int]


@dataclass(frozen=True, slots=True)
class Output:
    """The logits of the token after a row, and their ids.

    Either the largest that ``mask`` allows, largest first (among equals the smaller id first; -inf follows where fewer
    are allowed), or all, in the order of the ids, masked or not. Undefined unless ``is_finite``.
    """

    ids: Ids
    logits: Floats
    is_finite: bool = True
    mask: Mask | None = None


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("hidden_size", "intermediate_size", "num_layers", "num_heads")),
        *((name, ctypes.c_int32) for name in ("num_kv_heads", "head_size", "vocabulary_size", "max_tokens")),
        *((name, ctypes.c_int32) for name in ("max_rows", "num_pages", "num_threads", "has_bias")),
        *((name, ctypes.c_int32) for name in ("is_tied", "is_interleaved", "has_qk_norm")),
        *((name, ctypes.c_float) for name in ("epsilon", "rope_factor")),
        ("rope_frequencies", ctypes.POINTER(ctypes.c_float)),
        ("is_without_rope", ctypes.c_char_p),
    ]


class _Batch(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("num_rows", "num_sequences", "num_outputs", "pages_stride")),
        *((name, ctypes.c_int32) for name in ("largest_stride", "allowed_stride")),
        *((name, ctypes.c_void_p) for name in ("ids", "first_rows", "starts", "pages", "output_rows", "num_largest")),
        *((name, ctypes.c_void_p) for name in ("masks", "allowed", "largest_ids", "largest_logits")),
        *((name, ctypes.c_void_p) for name in ("logits", "is_finite")),
    ]


class _Mirrored(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("value", ctypes.c_int32)]


def missing() -> str:
    """Why the library cannot be used on this machine; empty when it can."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\nflags")[2]
    lacking = sorted(_NEEDED_FLAGS - set(flags.partition("\n")[0].split()))
    if lacking:
        return f"the processor has no {', '.join(lacking)}"
    return "" if _PATH.exists() else "it was not compiled when this package was built"


def largest(numbers: Floats, count: int) -> Ids:
    """The positions of the ``count`` largest of contiguous numbers, largest first; among equals the first first."""
    assert numbers.flags.c_contiguous
    positions = np.empty(min(count, len(numbers)), dtype=np.int32)
    if len(positions):
        _library().model_largest(numbers.ctypes.data, len(numbers), len(positions), positions.ctypes.data)
    return positions


def page_bytes(shape: Shape) -> int:
    """The bytes of a cache page: keys and values of :data:`PAGE_TOKENS` tokens."""
    return int(_library().model_page_bytes(ctypes.byref(_shape(shape, Capacity(0, 0, 0, 0)))))


def weights_bytes(shape: Shape) -> int:
    """The bytes of all packed matrices."""
    return int(_library().model_weights_bytes(ctypes.byref(_shape(shape, Capacity(0, 0, 0, 0)))))


class Model:
    """Packed weights and KV cache. Fill it, then call :meth:`forward` from one thread.

    Raises:
        OperatorError: there is not enough memory, or the library is of another version.
    """

    def __init__(self, shape: Shape, capacity: Capacity) -> None:
        self._library = _library()
        self._capacity = capacity
        self._width = -(-shape.vocabulary_size // _LANES) * _LANES
        self._vocabulary_size = shape.vocabulary_size
        self._all_ids = np.arange(shape.vocabulary_size, dtype=np.int32)
        self._logits = np.empty((0, self._width), dtype=np.float32)  # kept: the kernel would zero fresh memory
        self._handle = self._library.model_new(ctypes.byref(_shape(shape, capacity)))
        if not self._handle:
            raise OperatorError("There is not enough memory for this model; lower engine.cache_size_gb.")
        weakref.finalize(self, self._library.model_free, self._handle)

    def set_rows(self, matrix: Matrix, layer: int, first: int, number: Number, rows: NDArray[np.generic]) -> None:
        """Pack rows of a matrix, from row ``first`` on; ``rows`` is (rows, bytes or numbers), contiguous, as stored."""
        assert rows.flags.c_contiguous
        self._library.model_set_rows(
            self._handle, matrix, layer, first, rows.shape[0], number, rows.ctypes.data_as(ctypes.c_void_p)
        )

    def set_vector(self, vector: Vector, layer: int, values: Floats) -> None:
        """Copy a vector: (numbers,), float32 and contiguous."""
        assert values.dtype == np.float32
        assert values.flags.c_contiguous
        self._library.model_set_vector(self._handle, vector, layer, values.ctypes.data_as(ctypes.c_void_p))

    def forward(self, batch: Sequence[Rows], output_rows: Sequence[int]) -> Floats:
        """One pass; all logits of ``output_rows``, (outputs, vocabulary). Rows are counted over the whole batch.

        The array is valid until the next pass.

        Raises:
            ValueError: the batch exceeds the capacity, or ``output_rows`` do not ascend.
        """
        self._run(batch, output_rows, _ids([0] * len(output_rows)), [None] * len(output_rows))
        return self._logits[: len(output_rows), : self._vocabulary_size]

    def forward_largest(
        self, batch: Sequence[Rows], outputs: Sequence[int], num_largest: Sequence[int], masks: Masks = ()
    ) -> list[Output]:
        """Like :meth:`forward`, but of each row its ``num_largest`` largest logits, or all where that is 0.

        A few are cheaper: logits that cannot be among them are only estimated.
        """
        counts = np.minimum(_ids(num_largest), self._vocabulary_size)
        masks = masks or [None] * len(outputs)
        ids, logits, is_finite = self._run(batch, outputs, counts, masks)
        kept = [(ids[row, :n], logits[row, :n]) if n else self._all(row) for row, n in enumerate(counts.tolist())]
        return [Output(*one, *rest) for one, *rest in zip(kept, is_finite.astype(bool).tolist(), masks, strict=True)]

    def _all(self, row: int) -> tuple[Ids, Floats]:
        return self._all_ids, self._logits[row, : self._vocabulary_size]

    def _run(
        self, batch: Sequence[Rows], output_rows: Sequence[int], num_largest: Ids, masks: Masks
    ) -> tuple[Ids, Floats, Ids]:
        ids = _ids([token for rows in batch for token in rows.ids])
        first_rows = _ids(np.cumsum([0, *(len(rows.ids) for rows in batch)]))
        pages = np.zeros((len(batch), max(len(rows.pages) for rows in batch)), dtype=np.int32)
        for table, rows in zip(pages, batch, strict=True):
            table[: len(rows.pages)] = rows.pages
        if len(ids) > self._capacity.max_rows or any(
            rows.start + len(rows.ids) > min(self._capacity.max_tokens, len(rows.pages) * PAGE_TOKENS) for rows in batch
        ):
            raise ValueError("the batch exceeds the capacity that the model was loaded with")
        starts, outputs = _ids([rows.start for rows in batch]), _ids(output_rows)
        if np.any(np.diff(outputs, prepend=-1, append=len(ids)) < 1):
            raise ValueError("the output rows do not ascend, or are not rows of the batch")
        if len(outputs) > len(self._logits):
            self._logits = np.empty((len(outputs), self._width), dtype=np.float32)
        largest_ids = np.empty((len(outputs), num_largest.max(initial=0)), dtype=np.int32)
        largest_logits = np.empty(largest_ids.shape, dtype=np.float32)
        read = (ids, first_rows, starts, pages, outputs, num_largest, *as_rows(masks, self._vocabulary_size))
        is_finite = np.ones(len(outputs), dtype=np.int32)
        written = (largest_ids, largest_logits, self._logits, is_finite)
        sizes = (len(ids), len(batch), len(outputs), pages.shape[1], largest_ids.shape[1], read[-1].shape[1])
        call = _Batch(*sizes, *(array.ctypes.data for array in (*read, *written)))
        self._library.model_forward(self._handle, ctypes.byref(call))
        return largest_ids, largest_logits, is_finite

    def seconds(self) -> dict[str, float]:
        """Seconds that all passes so far have spent, by phase."""
        seconds = np.zeros(len(PHASES))
        self._library.model_seconds(self._handle, seconds.ctypes.data)
        return dict(zip(PHASES, seconds.tolist(), strict=True))

    def touch(self, page: int) -> None:
        """Fault in an unused cache page so that its first write does not stall."""
        self._library.model_touch(self._handle, page)

    def copy_page(self, source: int, target: int) -> None:
        """Copy a cache page."""
        self._library.model_copy_page(self._handle, source, target)

    def clear_cache(self) -> None:
        """Return the cache's memory to the system; it reads as zeros until it is written again."""
        self._library.model_clear_cache(self._handle)


def _ids(values: Sequence[int] | NDArray[np.int64]) -> Ids:
    return np.asarray(values, dtype=np.int32)


def _shape(shape: Shape, capacity: Capacity) -> _Shape:
    values = {name: getattr(shape, name) for name in Shape.__slots__}
    without_rope = values.pop("layers_without_rope")
    values["is_without_rope"] = bytes(layer in without_rope for layer in range(shape.num_layers))
    values["rope_frequencies"] = (ctypes.c_float * len(shape.rope_frequencies))(*shape.rope_frequencies)
    return _Shape(**values, **{name: getattr(capacity, name) for name in Capacity.__slots__})


@functools.cache
def _library() -> ctypes.CDLL:
    """The library; one that does not mirror what this module declares raises an OperatorError."""
    library = ctypes.CDLL(str(_PATH))
    _compare(library)
    integer, pointer = ctypes.c_int32, ctypes.c_void_p
    signatures: Sequence[tuple[Any, Any, list[Any]]] = (
        (library.model_new, pointer, [pointer]),
        (library.model_free, None, [pointer]),
        (library.model_seconds, None, [pointer, pointer]),
        (library.model_clear_cache, None, [pointer]),
        (library.model_touch, None, [pointer, integer]),
        (library.model_copy_page, None, [pointer, integer, integer]),
        (library.model_page_bytes, ctypes.c_int64, [pointer]),
        (library.model_weights_bytes, ctypes.c_int64, [pointer]),
        (library.model_set_rows, None, [pointer, integer, integer, integer, integer, integer, pointer]),
        (library.model_set_vector, None, [pointer, integer, integer, pointer]),
        (library.model_forward, None, [pointer, pointer]),
        (library.model_largest, None, [pointer, integer, integer, pointer]),
    )
    for function, result, arguments in signatures:
        function.restype, function.argtypes = result, arguments
    return library


def _compare(library: ctypes.CDLL) -> None:
    there: dict[str, int] = {}
    if hasattr(library, "model_mirrored"):
        library.model_mirrored.restype = ctypes.POINTER(_Mirrored)
        table = library.model_mirrored()
        entries = itertools.takewhile(lambda entry: entry.name, map(table.__getitem__, itertools.count()))
        there = {entry.name.decode(): entry.value for entry in entries}
    here = _mirrored()
    for name, _ in sorted(here.items() ^ there.items()):
        raise OperatorError(
            f"{_PATH.name} was compiled from another version of this program ({name} is {there.get(name)} there "
            f"and {here.get(name)} here). Install the package again."
        )


def _mirrored() -> dict[str, int]:
    """What :func:`model_mirrored` of csrc/model.h returns: offsets and sizes in bytes, enumerators, constants."""
    values = {member.name: int(member) for enum in (Number, Matrix, Vector) for member in enum}
    values |= {"NUM_NUMBERS": len(Number), "NUM_MATRICES": len(Matrix), "NUM_VECTORS": len(Vector)}
    values |= {"NUM_PHASES": len(PHASES), "PAGE_TOKENS": PAGE_TOKENS, "GROUP": GROUP, "LANES": _LANES}
    for name, struct in {"model_shape": _Shape, "model_batch": _Batch}.items():
        values[name] = ctypes.sizeof(struct)
        values |= {f"{name}.{field[0]}": getattr(struct, field[0]).offset for field in struct._fields_}
    return values
