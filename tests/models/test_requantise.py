"""Q4_1 becomes Q8_0 at import: nearly the same weights, a file that OpenVINO loads as it is."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from chatsvc.models.formats import requantise
from chatsvc.models.formats.gguf import read_head
from chatsvc.models.store import ModelStore
from tests.models.ggufs import tiny_gguf


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A file with a Q4_1 matrix, one that stays, and metadata of several kinds."""
    path = tmp_path / "mixed.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(3)
    writer.add_string("general.name", "mixed")
    writer.add_array("some.list", ["a", "general.file_type"])
    whims = np.random.default_rng(1)
    weights = whims.normal(0.3, 1, (6, 64)).astype(np.float32)
    kind = gguf.GGMLQuantizationType.Q4_1
    writer.add_tensor("blk.0.ffn_up.weight", gguf.quants.quantize(weights, kind), raw_dtype=kind)
    writer.add_tensor("output_norm.weight", np.arange(5, dtype=np.float32))
    writer.add_tensor("blk.1.ffn_up.weight", gguf.quants.quantize(weights + 1, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def values(path: Path) -> dict[str, np.ndarray]:
    tensors = gguf.GGUFReader(path).tensors
    return {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy() for tensor in tensors}


def test_the_weights_stay_what_they_are_within_a_step_of_q8_0(mixed: Path):
    before = values(mixed)
    assert requantise.is_needed(read_head(mixed))
    told = []
    written = mixed.with_name("written.gguf")
    requantise.rewrite([mixed], written, {}, lambda *progress: told.append(progress))
    after = values(written)
    head = read_head(written)
    assert not requantise.is_needed(head)
    assert list(after) == list(before)
    assert head.metadata["general.file_type"] == 7
    assert head.metadata["some.list"] == ["a", "general.file_type"]
    assert np.array_equal(after["output_norm.weight"], before["output_norm.weight"])
    for name in ("blk.0.ffn_up.weight", "blk.1.ffn_up.weight"):
        step = np.abs(before[name]).max() / 127
        assert np.abs(after[name] - before[name]).max() <= step
    assert told[-1][1:] == (3, 3)


@pytest.mark.parametrize(
    ("kind", "becomes"), [("Q5_0", "Q8_0"), ("Q5_1", "Q8_0"), ("BF16", "F16"), ("F64", "F32"), ("Q8_0", "Q8_0")]
)
def test_types_that_openvino_does_not_know_become_others(tmp_path: Path, kind: str, becomes: str):
    source, written = tmp_path / "source.gguf", tmp_path / "written.gguf"
    wanted = gguf.GGMLQuantizationType[kind]
    weights = np.random.default_rng(1).normal(0, 1, (6, 64)).astype(np.float32)
    writer = gguf.GGUFWriter(source, "llama")
    packed = weights.astype(np.float64) if kind == "F64" else gguf.quants.quantize(weights, wanted)
    writer.add_tensor("blk.0.ffn_up.weight", packed, raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    requantise.rewrite([source], written, {"a.key": "a text"})
    assert read_head(written).tensors["blk.0.ffn_up.weight"].kind == becomes
    assert read_head(written).metadata["a.key"] == "a text"
    before = weights if kind == "F64" else gguf.quants.dequantize(packed, wanted)
    assert np.abs(values(written)["blk.0.ffn_up.weight"] - before).max() <= np.abs(before).max() / 127


def test_an_imported_file_keeps_the_sources_digest_as_its_revision(embedded_model):
    head = read_head(embedded_model.path / "model.gguf")
    assert {tensor.kind for tensor in head.tensors.values()} == {"F32", "Q8_0"}


def test_what_openvino_loads_as_it_is_is_only_copied(store: ModelStore, tmp_path: Path):
    source = tiny_gguf(tmp_path / "tiny.gguf")
    folder = store.import_path(source, "tiny")
    assert (folder.path / "model.gguf").read_bytes() == source.read_bytes()
