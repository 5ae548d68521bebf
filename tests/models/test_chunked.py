"""C2SP chunked encryption and AES-KWP against the public vectors."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.keywrap import (
    InvalidUnwrap,
    aes_key_unwrap_with_padding,
    aes_key_wrap_with_padding,
)

from chatsvc.models.seal import chunked
from chatsvc.models.seal.chunked import MessageInvalid

KEY, SALT = bytes(range(32)), bytes(24)


def _vectors(name: str) -> list[dict[str, Any]]:
    folder = Path(os.environ.get("CHATSVC_VECTORS", Path(__file__).parents[3] / "shared" / "vectors"))
    if not (folder / name).exists():
        pytest.skip(f"{folder / name} is not there; set CHATSVC_VECTORS")
    groups = json.loads((folder / name).read_text())["testGroups"]
    return [test for group in groups for test in group["tests"]]


def _encrypt(plaintext: bytes, key: bytes = KEY, context: bytes = b"") -> bytes:
    return b"".join(chunked.encrypt(io.BytesIO(plaintext), key, context, SALT))


def _decrypt(message: bytes, key: bytes = KEY, context: bytes = b"") -> bytes:
    return b"".join(map(bytes, chunked.decrypt(io.BytesIO(message), key, context)))


def test_every_public_vector_gives_its_stated_result():
    num_checked = 0
    for test in _vectors("chunked-encryption-aes256gcm.json"):
        message = zlib.decompress(bytes.fromhex(test["ct"]))
        key, context = bytes.fromhex(test["key"]), bytes.fromhex(test["ctx"])
        if test["result"] == "valid":
            plaintext = _decrypt(message, key, context)
            assert len(plaintext) == test["msgLength"], test["comment"]
            assert hashlib.sha512(plaintext).hexdigest() == test["msgSha512"], test["comment"]
            assert b"".join(chunked.encrypt(io.BytesIO(plaintext), key, context, message[:24])) == message
        else:
            with pytest.raises(MessageInvalid):
                _decrypt(message, key, context)
        num_checked += 1
    assert num_checked == 35


def test_every_key_wrap_vector_gives_its_stated_result():
    tests = _vectors("aes-kwp.json")
    for test in tests:
        key, message, wrapped = (bytes.fromhex(test[name]) for name in ("key", "msg", "ct"))
        if test["result"] == "invalid":
            with pytest.raises(InvalidUnwrap):
                aes_key_unwrap_with_padding(key, wrapped)
        else:
            assert aes_key_unwrap_with_padding(key, wrapped) == message
            assert aes_key_wrap_with_padding(key, message) == wrapped
    assert len(tests) == 254


@pytest.mark.parametrize("size", [0, 1, 16383, 16384, 16385, 32768, 50000])
def test_what_was_encrypted_is_decrypted(size: int):
    plaintext = os.urandom(size)
    assert _decrypt(_encrypt(plaintext)) == plaintext


def test_a_reader_that_gives_little_at_a_time_gives_the_same_message():
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 1000))

    plaintext = bytes(40000)
    assert b"".join(chunked.encrypt(Slow(plaintext), KEY, b"", SALT)) == _encrypt(plaintext)


def test_every_single_bit_flip_is_found():
    message = bytearray(_encrypt(b"short"))
    for bit in range(len(message) * 8):
        message[bit // 8] ^= 1 << bit % 8
        with pytest.raises(MessageInvalid):
            _decrypt(bytes(message))
        message[bit // 8] ^= 1 << bit % 8
    assert _decrypt(bytes(message)) == b"short"


def test_every_cut_is_found():
    message = _encrypt(bytes(20000))
    for size in _sizes(len(message)):
        with pytest.raises(MessageInvalid):
            _decrypt(message[:size])


def _sizes(length: int) -> Iterator[int]:
    yield from range(100)
    yield from range(100, length, 997)
    yield from range(16384 + 56, 16384 + 56 + 40)
    yield length - 1
