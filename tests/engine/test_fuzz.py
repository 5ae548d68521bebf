"""Damaged GGUF, safetensors and tokenizer files through the real readers: they are read, or refused with a named error."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from chatsvc.engine.runners.native import library
from chatsvc.engine.runners.native.filling import fill
from chatsvc.engine.runners.native.library import Capacity, Model
from chatsvc.engine.runners.native.weights import open_weights
from chatsvc.errors import OperatorError
from chatsvc.models.formats import gguf
from chatsvc.models.text import tokenizer
from tests.engine.tinyweights import tiny_safetensors
from tests.models.ggufs import tiny_gguf
from tests.shapes import trained_tokenizer

NUM_MUTATIONS = 200
EDGES = (0, 1, 0x7F, 0x80, 0xFF)


def mutated(content: bytes, generator: random.Random, end: int) -> bytes:
    """One to four changes in the first ``end`` bytes, where the sizes, names and offsets are; or a file cut short."""
    damaged = bytearray(content)
    for _ in range(generator.randint(1, 4)):
        at, length = generator.randrange(min(end, len(damaged))), generator.choice((1, 1, 2, 4, 8))
        what = generator.randrange(6)
        if what == 0:
            del damaged[at : at + length]
        elif what == 1:
            damaged[at:at] = generator.randbytes(length)
        elif what == 2:
            other = generator.randrange(min(end, len(damaged)))
            damaged[at : at + length] = damaged[other : other + length]
        elif what == 3:
            damaged[at : at + length] = bytes([generator.choice(EDGES)]) * length
        else:
            damaged[at] ^= 1 << generator.randrange(8)
    return bytes(damaged[: generator.randrange(1, len(damaged))] if generator.random() < 0.1 else damaged)


def count_refused(path: Path, read: Callable[[], object], seed: int, end: int) -> int:
    """Any other exception than a refusal fails the test, and a crash ends it."""
    content, generator, num_refused = path.read_bytes(), random.Random(seed), 0
    for _ in range(NUM_MUTATIONS):
        path.unlink()  # an earlier mapping keeps its own file
        path.write_bytes(mutated(content, generator, end))
        try:
            read()
        except OperatorError:
            num_refused += 1
    path.write_bytes(content)
    return num_refused


def load(path: Path) -> None:
    weights = open_weights(path)
    shape = weights.shape
    if shape.num_layers <= 4 and library.weights_bytes(shape) < 1 << 26:  # larger ones are refused for lack of memory
        fill(Model(shape, Capacity(max_tokens=32, max_rows=16, num_pages=1, num_threads=1)), weights)


native = pytest.mark.skipif(bool(library.missing()), reason="the native runner does not run here")


@native
def test_damaged_gguf_files_are_refused(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "tiny.gguf", heads=1)
    load(path)
    end = gguf.read_head(path).data_start
    assert count_refused(path, lambda: load(path), 1, end) > NUM_MUTATIONS // 4
    assert count_refused(path, lambda: load(path), 2, 256) > NUM_MUTATIONS // 4


@native
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_damaged_safetensors_are_refused(tmp_path: Path, name: str) -> None:
    folder = tiny_safetensors(tmp_path / "tiny")
    load(folder)
    end = 8 + int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")
    assert count_refused(folder / name, lambda: load(folder), 3, end) > NUM_MUTATIONS // 4


def test_damaged_tokenizers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(trained_tokenizer(512).to_str())
    tokenizer.parse(path.read_bytes())
    read = lambda: tokenizer.parse(path.read_bytes())  # noqa: E731 - the same call each time
    assert count_refused(path, read, 4, len(path.read_bytes())) > NUM_MUTATIONS // 4


def test_tokenizers_in_damaged_gguf_files_are_refused(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "tiny.gguf", with_tensors=False)
    end = gguf.read_head(path).data_start
    assert count_refused(path, lambda: tokenizer.from_gguf(gguf.read_head(path)), 5, end) > NUM_MUTATIONS // 4
