"""C2SP chunked encryption, instance Cobblestone-256 (https://c2sp.org/chunked-encryption): SHA-512 and AES-256-GCM.

::

    message = salt (24) || commitment (32) || chunk*
    chunk = AES-256-GCM(16384 bytes, in the last one fewer) || tag (16)
    key (32) || base nonce (12) || commitment (32) = HKDF-Expand-SHA-512(input key, info)
    info = "c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM" || 0x00 || salt || context
    nonce of chunk i = base nonce XOR i (big-endian)

The last chunk is always shorter than the others, possibly empty, so truncation is noticed. Knows nothing about files or
where keys come from. The tests run all public test vectors.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

CHUNK_BYTES = 16 * 1024
SALT_BYTES = 24
KEY_BYTES = 32
_NONCE_BYTES = 12
_COMMITMENT_BYTES = 32
_TAG_BYTES = 16
_SEALED_CHUNK_BYTES = CHUNK_BYTES + _TAG_BYTES
_CHUNKS_AT_A_TIME = 16  # small enough to stay in the processor's cache until used
HEADER_BYTES = SALT_BYTES + _COMMITMENT_BYTES
_LABEL = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\x00"


class MessageInvalid(Exception):
    """The message was not made with this key and context, or was changed, reordered, cut or extended."""


@dataclass(frozen=True, slots=True, repr=False)
class _Keys:
    cipher: AESGCM
    base_nonce: int
    commitment: bytes

    def nonce(self, index: int) -> bytes:
        return (self.base_nonce ^ index).to_bytes(_NONCE_BYTES, "big")


def encrypt(reader: BinaryIO, key: bytes, context: bytes, salt: bytes) -> Iterator[bytes]:
    """Encrypt what ``reader`` holds; yields the message in parts. Never reuse a salt."""
    keys = _derive(key, context, salt)
    yield salt + keys.commitment
    index = 0
    while True:
        chunk = _read_exactly(reader, CHUNK_BYTES)
        yield keys.cipher.encrypt(keys.nonce(index), chunk, None)
        if len(chunk) < CHUNK_BYTES:
            return
        index += 1


def decrypt(reader: BinaryIO, key: bytes, context: bytes) -> Iterator[memoryview]:
    """Decrypt the message that ``reader`` holds to its end; yields authenticated plaintext, several chunks at a time.

    Each part's buffer is reused for the next. Truncation is detected only at the end.

    Raises:
        MessageInvalid: the message was not made with this key and context, or was changed.
    """
    header = _read_exactly(reader, HEADER_BYTES)
    if len(header) < HEADER_BYTES or len(key) != KEY_BYTES:
        raise MessageInvalid
    keys = _derive(key, context, header[:SALT_BYTES])
    if not hmac.compare_digest(keys.commitment, header[SALT_BYTES:]):
        raise MessageInvalid
    plaintext = memoryview(bytearray(_CHUNKS_AT_A_TIME * CHUNK_BYTES))
    index, size = 0, CHUNK_BYTES
    while size == CHUNK_BYTES:
        block = memoryview(_read_exactly(reader, _CHUNKS_AT_A_TIME * _SEALED_CHUNK_BYTES))
        written = 0
        for place in range(0, len(block) or 1, _SEALED_CHUNK_BYTES):
            chunk = block[place : place + _SEALED_CHUNK_BYTES]
            size = len(chunk) - _TAG_BYTES
            if size < 0:
                raise MessageInvalid
            try:
                keys.cipher.decrypt_into(keys.nonce(index), chunk, None, plaintext[written : written + size])
            except InvalidTag as error:
                raise MessageInvalid from error
            written, index = written + size, index + 1
        yield plaintext[:written]


def _derive(key: bytes, context: bytes, salt: bytes) -> _Keys:
    size = KEY_BYTES + _NONCE_BYTES + _COMMITMENT_BYTES
    material = HKDFExpand(SHA512(), size, _LABEL + salt + context).derive(key)
    nonce = int.from_bytes(material[KEY_BYTES : KEY_BYTES + _NONCE_BYTES], "big")
    return _Keys(AESGCM(material[:KEY_BYTES]), nonce, material[KEY_BYTES + _NONCE_BYTES :])


def _read_exactly(reader: BinaryIO, size: int) -> bytes:
    """``read`` may return less than asked for before the end."""
    parts = []
    while size and (part := reader.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
