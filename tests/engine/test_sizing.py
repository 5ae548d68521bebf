"""The memory budget: what fits, what is refused, and in which words."""

import json
import mmap
import os
from dataclasses import replace
from pathlib import Path

import pytest

from chatsvc.engine.engine_side.memory import drop_file_mapping, private_bytes
from chatsvc.engine.protocol import Sampling
from chatsvc.engine.runners.base import RunnerOptions
from chatsvc.engine.runners.openvino.runner import OpenVinoRunner
from chatsvc.engine.runners.sizing import MIB, ModelShape, num_kv_blocks, shape_of, weights_bytes
from chatsvc.errors import OperatorError
from chatsvc.models.store import ModelFolder
from tests.engine.conftest import run

QWEN = ModelShape(num_layers=24, num_kv_heads=16, head_size=64)
QWEN_WEIGHTS = 465 * MIB


def test_a_block_is_as_large_as_the_library_says() -> None:
    # PipelineMetrics.cache_size_in_bytes / num_kv_blocks, read off OpenVINO GenAI 2026.4.1
    assert QWEN.block_bytes == 1_867_776
    assert ModelShape(num_layers=30, num_kv_heads=3, head_size=64).block_bytes == 437_760
    assert ModelShape(num_layers=24, num_kv_heads=16, head_size=64, value_bits=4).block_bytes == 1_474_560


def test_the_shape_is_read_from_a_gguf_file_and_from_a_config(smollm2: ModelFolder, tmp_path: Path) -> None:
    with smollm2.weights() as path:
        assert shape_of(path) == ModelShape(num_layers=30, num_kv_heads=3, head_size=64)
        assert weights_bytes(path) > 90 * MIB
    config = {"num_hidden_layers": 24, "num_attention_heads": 16, "hidden_size": 1024}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "openvino_model.bin").write_bytes(b"12345")
    assert shape_of(tmp_path) == QWEN
    assert weights_bytes(tmp_path) == 5
    (tmp_path / "openvino_model.xml").write_text('<data element_type="u8"/>')
    assert shape_of(tmp_path) == QWEN
    (tmp_path / "openvino_model.xml").write_text('<data element_type="u8"/><data element_type="u4"/>')
    assert shape_of(tmp_path) == replace(QWEN, value_bits=4)
    (tmp_path / "openvino_model.xml").unlink()
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_key_value_heads": 2, "head_dim": 128}))
    assert shape_of(tmp_path) == ModelShape(num_layers=24, num_kv_heads=2, head_size=128)


def test_the_shape_of_unsealed_weights_is_read_through_their_link(smollm2: ModelFolder, tmp_path: Path) -> None:
    with smollm2.weights() as path:
        (tmp_path / "model.gguf").symlink_to(path)
        assert shape_of(tmp_path / "model.gguf") == shape_of(path)


@pytest.mark.parametrize("content", ["{}", "nonsense", '{"num_attention_heads": 0}', "[]"])
def test_a_config_that_says_nothing_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(OperatorError, match="import another copy"):
        shape_of(tmp_path)


def test_without_a_limit_the_cache_is_what_was_asked_for() -> None:
    assert num_kv_blocks(QWEN, QWEN_WEIGHTS, 32_768, RunnerOptions(cache_size_gb=1.0)) == 574
    assert num_kv_blocks(QWEN, QWEN_WEIGHTS, 32_768, RunnerOptions(cache_size_gb=0.001)) == 64
    assert num_kv_blocks(QWEN, QWEN_WEIGHTS, 100, RunnerOptions(cache_size_gb=0.001)) == 4


def test_a_limit_leaves_the_cache_what_the_model_leaves() -> None:
    blocks = num_kv_blocks(QWEN, QWEN_WEIGHTS, 32_768, RunnerOptions(memory_limit_mb=1200))
    assert 8 * 1000 / 32 < blocks < 574  # eight sequences of 1000 tokens have room
    assert QWEN_WEIGHTS + blocks * QWEN.block_bytes < 1200 * MIB
    assert num_kv_blocks(QWEN, QWEN_WEIGHTS, 32_768, RunnerOptions(memory_limit_mb=4000)) == 574


def test_a_model_that_cannot_fit_is_refused_with_the_size_that_would_do() -> None:
    with pytest.raises(OperatorError, match=r"memory_limit_mb = 700: it needs (\d+) MB") as raised:
        num_kv_blocks(QWEN, QWEN_WEIGHTS, 32_768, RunnerOptions(memory_limit_mb=700))
    needed = int(raised.value.message.split("it needs ")[1].split()[0])
    assert num_kv_blocks(QWEN, QWEN_WEIGHTS, 32_768, RunnerOptions(memory_limit_mb=needed)) == 64


def test_the_real_model_is_held_to_its_limit(smollm2: ModelFolder) -> None:
    with smollm2.weights() as path:
        with pytest.raises(OperatorError, match="does not fit") as raised:
            OpenVinoRunner(path, smollm2.card(), RunnerOptions(memory_limit_mb=200))
        limit_mb = int(raised.value.message.split("it needs ")[1].split()[0])
        options = RunnerOptions(memory_limit_mb=limit_mb, max_num_seqs=2, num_threads=2)
        small = OpenVinoRunner(path, smollm2.card(), options)
        # This process holds much besides the engine (torch, other tests), so what it takes is over the limit.
        if private_bytes() > (limit_mb - 30) * MIB:
            with pytest.raises(OperatorError, match="it takes"):
                small.warm_up()
        else:
            small.warm_up()
    # A sequence that outgrows the whole cache ends with an error, and the next one is served.
    small.add(1, [5] * 3000, Sampling(max_tokens=5, temperature=0), "alice")
    outputs = []
    while not outputs:
        outputs = small.step()
    assert (outputs[0].finish_reason, outputs[0].sequence_id) == ("error", 1)
    assert len(run(small, [([5, 6], Sampling(max_tokens=2, temperature=0))])[0]) == 2


def test_the_mapping_of_a_file_is_dropped_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"w" * 4 * MIB)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[::4096] == b"w" * 1024
        assert drop_file_mapping(tmp_path) == 4 * MIB
        assert mapped[::4096] == b"w" * 1024
    assert drop_file_mapping(path) == 0


def test_the_mapping_of_a_file_in_memory_is_dropped_by_its_link(tmp_path: Path) -> None:
    descriptor = os.memfd_create("weights")
    with os.fdopen(descriptor, "wb") as file:
        file.write(b"w" * 4 * MIB)
        file.flush()
        (tmp_path / "weights.bin").symlink_to(f"/proc/{os.getpid()}/fd/{descriptor}")
        with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as mapped:
            assert drop_file_mapping(tmp_path) == 4 * MIB
            assert mapped[::4096] == b"w" * 1024
