"""How much of prompt and answer a record holds: the levels ``metadata``, ``redacted`` and ``sealed``.

``metadata`` holds a keyed hash only; ``redacted`` also the text with secrets and personal numbers masked; ``sealed``
also the whole text, encrypted to an auditor's X25519 key with HPKE (RFC 9180: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256,
AES-256-GCM, base mode), whose private half is not on this machine.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from chatsvc.audit.format.record import MAX_TEXT, Record
from chatsvc.audit.options import Level
from chatsvc.audit.write.redact import redact
from chatsvc.errors import ChatsvcError, OperatorError

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_INFO = b"chatsvc audit content v1 "


class Unsealable(ChatsvcError):
    """The key does not open the content."""

    code = "content_unsealable"
    message = "This key does not open the content of this record."


class Contents:
    """Makes the fields of a record that hold content, at one level."""

    def __init__(self, level: Level, auditor_key: Path | None = None) -> None:
        self._level = level
        self._key = _read_public(auditor_key) if level == "sealed" else None

    def fields(self, content: str, log_id: str) -> Record:
        """The fields of a record that hold content."""
        if self._level == "redacted":
            return {"content": redact(content)[:MAX_TEXT].encode("utf-8", "replace").decode()}
        if self._key is not None:
            data = content.encode("utf-8", "surrogatepass")
            return {"content_sealed": base64.b64encode(_SUITE.encrypt(data, self._key, _info(log_id))).decode()}
        return {}


def unseal(record: Record, key: X25519PrivateKey) -> str:
    """The content of a sealed record, with the auditor's private key.

    Raises:
        Unsealable: another key sealed it, or it was changed.
    """
    try:
        data = base64.b64decode(record["content_sealed"], validate=True)
        return _SUITE.decrypt(data, key, _info(record["log_id"])).decode("utf-8", "surrogatepass")
    except (InvalidTag, binascii.Error, ValueError):
        raise Unsealable from None


def _info(log_id: str) -> bytes:
    return _INFO + log_id.encode()


def make_auditor_key() -> tuple[bytes, bytes]:
    """A new pair for an auditor: private and public half, PEM."""
    key = X25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def read_private(path: Path) -> X25519PrivateKey:
    """The auditor's private half."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except ValueError:
        key = None
    if not isinstance(key, X25519PrivateKey):
        raise OperatorError(f"{path} is not an X25519 private key in PEM form.")
    return key


def _read_public(path: Path | None) -> X25519PublicKey:
    if path is None:
        raise OperatorError(
            "audit.level = 'sealed' needs audit.auditor_key_file; 'chatsvc audit auditor-key' makes it."
        )
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError):
        key = None
    if not isinstance(key, X25519PublicKey):
        raise OperatorError(f"{path} is not an X25519 public key in PEM form.")
    return key
