r"""A sealed file: weights encrypted at rest, readable only with the key-encryption key (KEK).

::

    "CHATW1\n" || u32 header length, big-endian || header, canonical JSON (RFC 8785) || C2SP chunked-encryption message

    header: v, suite, model, revision, file, size, sha256 (of the plaintext), kek_id, wrapped_dek (hex)

Each file has its own data key (DEK), wrapped with AES-256-KWP (RFC 5649) under the KEK. The message's context is
SHA-256 of the header without ``kek_id`` and ``wrapped_dek``: a swapped header or file fails at the commitment, and a
change of KEK rewrites the header only. All failures raise the same refusal.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec
import rfc8785
from cryptography.hazmat.primitives.keywrap import (
    InvalidUnwrap,
    aes_key_unwrap_with_padding,
    aes_key_wrap_with_padding,
)

from chatsvc.disk.durable import new_file
from chatsvc.disk.files import BLOCK_BYTES, Progress, no_progress, open_regular, sha256_of
from chatsvc.errors import ModelRefused
from chatsvc.models.seal import chunked
from chatsvc.models.seal.chunked import MessageInvalid
from chatsvc.models.signing import read_secret

SUFFIX = ".sealed"
KEK_BYTES = 32
_MAGIC = b"CHATW1\n"
_LENGTH = struct.Struct(">I")
_MAX_HEADER_BYTES = 1 << 16
_SUITE = "cobblestone-256+aes-256-kwp"


@dataclass(frozen=True, slots=True, repr=False)
class KeyEncryptionKey:
    """32 bytes that wrap data keys; never printed or logged."""

    secret: bytes

    @property
    def id(self) -> str:
        """Identifies the key without revealing it."""
        return hashlib.sha256(b"chatsvc kek id v1\n" + self.secret).hexdigest()[:16]

    def wrap(self, data_key: bytes) -> str:
        """AES-256-KWP, in hex."""
        return aes_key_wrap_with_padding(self.secret, data_key).hex()

    def unwrap(self, wrapped: str) -> bytes:
        """The data key.

        Raises:
            ModelRefused: it was not wrapped under this key.
        """
        try:
            return aes_key_unwrap_with_padding(self.secret, bytes.fromhex(wrapped))
        except (InvalidUnwrap, ValueError) as error:
            raise ModelRefused from error


def read_kek(path: Path) -> KeyEncryptionKey:
    """Read the key from a file of 32 raw bytes that only its owner can read (or a systemd credential).

    Raises:
        OperatorError: the file does not qualify; the message names the remedy.
    """
    return KeyEncryptionKey(read_secret(path, KEK_BYTES))


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The header of a sealed file."""

    v: int
    suite: str
    model: str
    revision: str
    file: str
    size: int
    sha256: str
    kek_id: str = ""
    wrapped_dek: str = ""

    def encode(self) -> bytes:
        """The start of the file: magic, length and header."""
        header = rfc8785.dumps(msgspec.to_builtins(self))
        return _MAGIC + _LENGTH.pack(len(header)) + header

    def context(self) -> bytes:
        """The message's context: everything but the wrapped key."""
        bound = msgspec.to_builtins(self)
        del bound["kek_id"], bound["wrapped_dek"]
        return hashlib.sha256(rfc8785.dumps(bound)).digest()


@dataclass(frozen=True, slots=True)
class Owner:
    """The model that a file belongs to; files of other models are refused."""

    model: str
    revision: str


def seal_file(
    source: Path, target: Path, owner: Owner, kek: KeyEncryptionKey, progress: Progress = no_progress
) -> None:
    """Write the sealed form of ``source`` to a new file."""
    data_key = secrets.token_bytes(chunked.KEY_BYTES)
    with open_regular(source) as reader, new_file(target) as writer:
        digest = sha256_of(reader, progress, f"hashing {source.name}")
        size = reader.tell()
        header = Header(
            v=1,
            suite=_SUITE,
            model=owner.model,
            revision=owner.revision,
            file=source.name,
            size=size,
            sha256=digest,
            kek_id=kek.id,
            wrapped_dek=kek.wrap(data_key),
        )
        writer.write(header.encode())
        reader.seek(0)
        salt = secrets.token_bytes(chunked.SALT_BYTES)
        for part in chunked.encrypt(reader, data_key, header.context(), salt):
            writer.write(part)
            progress(f"sealing {source.name}", reader.tell(), size)


def read_header(file: BinaryIO, owner: Owner, name: str) -> Header:
    """Read and check the header of an open sealed file; the file position is then at the message.

    Raises:
        ModelRefused: it is damaged, or belongs to another file or model.
    """
    start = file.read(len(_MAGIC) + _LENGTH.size)
    if len(start) != len(_MAGIC) + _LENGTH.size or not start.startswith(_MAGIC):
        raise ModelRefused
    (length,) = _LENGTH.unpack(start[len(_MAGIC) :])
    content = file.read(length) if length <= _MAX_HEADER_BYTES else b""
    try:
        header = msgspec.json.decode(content, type=Header)
        is_canonical = header.encode() == start + content
    except (msgspec.DecodeError, ValueError) as error:  # the latter for a number that canonical JSON cannot hold
        raise ModelRefused from error
    expected = (1, _SUITE, owner.model, owner.revision, name)
    if (header.v, header.suite, header.model, header.revision, header.file) != expected or not is_canonical:
        raise ModelRefused
    return header


def unseal(message: BinaryIO, header: Header, kek: KeyEncryptionKey) -> Iterator[memoryview]:
    """Decrypt the message at the file position. Authenticity of the whole is established with the last part.

    Each part's buffer is reused for the next. The header's ``sha256`` is not checked here: callers hash the plaintext,
    or verify the sealed file against a signed manifest.

    Raises:
        ModelRefused: the key is wrong, or anything was changed.
    """
    num_bytes = 0
    try:
        for part in chunked.decrypt(message, kek.unwrap(header.wrapped_dek), header.context()):
            num_bytes += len(part)
            if num_bytes > header.size:
                break
            yield part
    except MessageInvalid as error:
        raise ModelRefused from error
    if num_bytes != header.size:
        raise ModelRefused


def rewrap_file(source: Path, target: Path, owner: Owner, keys: tuple[KeyEncryptionKey, KeyEncryptionKey]) -> None:
    """Copy a sealed file with its data key wrapped under another key; the message is unchanged.

    Args:
        source: the sealed file.
        target: the new one.
        owner: the model that it must belong to.
        keys: the old key and the new one.

    Raises:
        ModelRefused: the old key is not the one it was sealed with.
    """
    old, new = keys
    with open_regular(source) as reader, new_file(target) as writer:
        header = read_header(reader, owner, source.name.removesuffix(SUFFIX))
        wrapped = new.wrap(old.unwrap(header.wrapped_dek))
        writer.write(msgspec.structs.replace(header, kek_id=new.id, wrapped_dek=wrapped).encode())
        while block := reader.read(BLOCK_BYTES):
            writer.write(block)
