"""GGUF heads: the ``gguf`` package is the oracle, and nothing that is cut off or absurd gets through."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from gguf import GGUFReader

from chatsvc.errors import OperatorError
from chatsvc.models.formats import gguf, requantise
from chatsvc.models.formats.gguf import GgufInvalid
from chatsvc.models.store import ModelFolder, ModelStore
from tests.models.ggufs import tiny_gguf


@pytest.mark.slow
def test_the_head_says_what_the_gguf_package_says(embedded_model: ModelFolder, gguf_file: Path):
    for path in (gguf_file, embedded_model.path / "model.gguf"):
        head = gguf.read_head(path)
        reader = GGUFReader(path)
        expected = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
        assert head.metadata == expected
        assert {name: one.kind for name, one in head.tensors.items()} == {
            tensor.name: tensor.tensor_type.name for tensor in reader.tensors
        }


def test_every_cut_is_noticed(gguf_file: Path, tmp_path: Path):
    content = gguf_file.read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in [*range(0, 4000, 61), len(content) // 2, len(content) - 1]:
        cut.write_bytes(content[:size])
        with pytest.raises(GgufInvalid):
            gguf.read_head(cut)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"GGML" + bytes(40), "not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 2 or 3"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 2 or 3"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "more than any model"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62), "more than any model"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 99), "damaged"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 9, 1), "damaged"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"\xff" + struct.pack("<IB", 0, 1), "damaged"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"t" + struct.pack("<I", 9), "more than any model"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"t" + struct.pack("<IQIQ", 1, 1, 10, 0), "multiple of a block"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"t" + struct.pack("<IQIQ", 1, 9, 0, 0), "cut off"),
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 17) + b"general.alignment" + struct.pack("<II", 4, 0),
            "damaged",
        ),
    ],
)
def test_an_absurd_head_is_refused(tmp_path: Path, head: bytes, message: str):
    path = tmp_path / "bad.gguf"
    path.write_bytes(head)
    with pytest.raises(GgufInvalid, match=message):
        gguf.read_head(path)


def test_a_missing_key_is_named(gguf_file: Path):
    with pytest.raises(GgufInvalid, match=r"no usable no\.such\.key"):
        gguf.read_head(gguf_file).get("no.such.key", int)


def test_a_text_is_added_and_nothing_else_changes(gguf_file: Path, tmp_path: Path):
    path = tmp_path / "more.gguf"
    requantise.rewrite([gguf_file], path, {"added.key": "value"})
    before, after = GGUFReader(gguf_file), GGUFReader(path)
    assert after.fields["added.key"].contents() == "value"
    assert len(after.fields) == len(before.fields) + 1
    for old, new in zip(before.tensors, after.tensors, strict=True):
        assert old.name == new.name
        assert (old.data == new.data).all()


def test_an_architecture_the_runner_cannot_load_is_refused(store: ModelStore, tmp_path: Path):
    path = tiny_gguf(tmp_path / "phi.gguf", architecture="phi3")
    with pytest.raises(OperatorError, match="the architecture phi3 is not served"):
        store.import_path(path)


def test_a_file_without_a_template_gets_chatml(store: ModelStore, tmp_path: Path):
    path = tiny_gguf(tmp_path / "plain.gguf", template=None)
    assert "<|im_start|>" in store.import_path(path).card().chat_template
