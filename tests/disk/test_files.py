"""Files that are there after a crash or not at all, and never a link that somebody planted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from chatsvc.disk import files
from chatsvc.models.manifest import is_code


def test_a_pipe_is_no_regular_file_and_does_not_block(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"), files.open_regular(tmp_path / "pipe"):
        pass


@pytest.mark.parametrize(
    ("name", "head", "expected"),
    [
        ("modeling.py", b"impo", True),
        ("weights.PKL", b"", True),
        ("pytorch_model.bin", b"\x00\x00\x00\x00", True),
        ("openvino_model.bin", b"\x00\x00\x00\x00", False),
        ("openvino_model.bin", b"PK\x03\x04", True),
        ("model.safetensors", b"\x80\x04\x95\x00", True),
        ("model.gguf", b"GGUF", False),
        ("tokenizer.json", b"{", False),
    ],
)
def test_code_is_known_by_name_and_by_first_bytes(name: str, head: bytes, expected: bool):
    assert is_code(name, head) is expected
