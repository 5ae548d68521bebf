"""The audit log's keys in ``CHATSVC_HOME/keys``: made on first use, mode 0400, never replaced silently.

============================== ==========================================================================
``audit-signing.pem``          Ed25519 (PKCS 8), signs checkpoints, tombstones and exports
``audit-signing.pub``          every public key that this home has signed with, as lines of ``audit.vkey``; not secret
``audit-hmac.key``             32 bytes, for keyed hashes of names, token ids and contents
``audit-seal-LOG.key``         the sealing key of the current epoch; the only file that is ever replaced
============================== ==========================================================================

A log's first sealing key, ``audit-seal-LOG.initial``, is kept in ``CHATSVC_HOME/for-auditor``, apart from these, until
``chatsvc audit seal-key`` moves it to the auditor or destroys it. Homes of earlier versions have it in ``keys``.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from chatsvc.audit.format import layout
from chatsvc.audit.format.notes import VerifierKey, format_vkey, read_vkeys
from chatsvc.audit.format.ratchet import SealKey, format_seal_key, parse_seal_key
from chatsvc.audit.format.replay import known_keys
from chatsvc.disk.append import full_or_failed
from chatsvc.disk.durable import erase, replace_file, write_file
from chatsvc.errors import OperatorError

_SECRET = 0o400
_SIGNING = "audit-signing.pem"
PUBLIC_KEYS = "audit-signing.pub"
_HANDOVER = "for-auditor"


def signing_key(directory: Path, *, create: bool) -> Ed25519PrivateKey:
    """The key that signs.

    Raises:
        OperatorError: it is missing and must not be made anew (its log exists), or it cannot be read.
    """
    path = directory / _SIGNING
    made = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        key = load_pem_private_key(_read_or_make(path, made, create=create), password=None)
    except ValueError:
        raise OperatorError(f"{path} is not a private key in PEM form; restore it from your backup.") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise OperatorError(f"{path} is not an Ed25519 key; restore it from your backup.")
    return key


def trusted_keys(directory: Path) -> frozenset[bytes]:
    """The public keys (32 bytes each) that this home has signed with: a verifier trusts them by default.

    Never read from beside the log: an attacker who can write the log could put a key of his own there.

    Raises:
        NoteInvalid: a line of ``audit-signing.pub`` is no key.
    """
    found = {key.public for key in _signed_with(directory)}
    if os.access(directory / _SIGNING, os.R_OK):  # a home older than ``audit-signing.pub``
        found.add(signing_key(directory, create=False).public_key().public_bytes_raw())
    return frozenset(found)


def public_keys(directory: Path, logs_directory: Path) -> list[VerifierKey]:
    """Every key that signs a log in ``logs_directory``, with its name: the keys that an auditor verifies with."""
    own = trusted_keys(directory)
    return [key for log in layout.logs(logs_directory) for key in known_keys(log) if key.public in own]


def trust(directory: Path, key: VerifierKey) -> None:
    """Add a key that this home signs with to its list, which keeps it after it is replaced."""
    known = _signed_with(directory)
    if key not in known:
        lines = [format_vkey(each) + "\n" for each in (*known, key)]
        replace_file(directory / PUBLIC_KEYS, "".join(lines).encode(), _SECRET)


def _signed_with(directory: Path) -> list[VerifierKey]:
    try:
        return read_vkeys(directory / PUBLIC_KEYS)
    except FileNotFoundError:
        return []


def hmac_key(directory: Path, *, create: bool) -> bytes:
    """The key of the keyed hashes, 32 bytes.

    Raises:
        OperatorError: as :func:`signing_key`.
    """
    key = _read_or_make(directory / "audit-hmac.key", os.urandom(32), create=create)
    if len(key) != 32:
        raise OperatorError(f"{directory / 'audit-hmac.key'} must hold 32 bytes; restore it from your backup.")
    return key


def seal_key(directory: Path, log_id: str) -> SealKey:
    """The sealing key of the current epoch.

    Raises:
        OperatorError: it is missing.
        SealInvalid: the file holds something else.
    """
    path = _seal_path(directory, log_id)
    return parse_seal_key(_read_or_make(path, b"", create=False).decode("ascii", "replace"))


def save_seal_key(directory: Path, key: SealKey) -> None:
    """Replace the sealing key by that of a later epoch; the former one is erased.

    Raises:
        DiskFull: try again later; the former key may still be there.
        DiskFailed: writing failed for another reason.
    """
    path = _seal_path(directory, key.log_id)
    with full_or_failed(path):
        replace_file(path, format_seal_key(key).encode(), _SECRET, erase_old=True)


def begin_sealing(directory: Path, key: SealKey) -> None:
    """Store the first sealing key of a new log twice: for the writer, and for the auditor to take away."""
    waiting = directory.parent / _HANDOVER / f"audit-seal-{key.log_id}.initial"
    write_file(waiting, format_seal_key(key).encode(), _SECRET)
    save_seal_key(directory, key)


def initial_seals(directory: Path) -> list[Path]:
    """The first sealing keys that are still on this machine."""
    places = (directory.parent / _HANDOVER, directory)
    return sorted(path for place in places for path in place.glob("audit-seal-*.initial"))


def move_to_auditor(path: Path, target: Path) -> Path:
    """Move a first sealing key into the auditor's directory ``target``; the file here is erased.

    Raises:
        OperatorError: ``target`` has a file of that name already.
    """
    copy = target / path.name
    try:
        write_file(copy, path.read_bytes(), _SECRET)
    except FileExistsError:
        raise OperatorError(f"{copy} is there already; name another directory.") from None
    drop(path)
    return copy


def drop(path: Path) -> None:
    """Erase a first sealing key: then records of past epochs can be neither forged nor checked by MAC."""
    erase(path)


def _seal_path(directory: Path, log_id: str) -> Path:
    return directory / f"audit-seal-{log_id}.key"


def _read_or_make(path: Path, made: bytes, *, create: bool) -> bytes:
    if create:
        with suppress(FileExistsError):
            write_file(path, made, _SECRET)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise OperatorError(
            f"{path} is missing, but an audit log exists that needs it; restore it, or move the log's directory away "
            "to begin a new log."
        ) from None
    except OSError as error:
        raise OperatorError(f"{path} cannot be read: {error.strerror}.") from error
