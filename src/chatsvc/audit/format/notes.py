"""Checkpoints: a C2SP tlog-checkpoint (origin, size, root) inside a C2SP signed note, signed with Ed25519.

::

    chatsvc.local/audit/2f6c…          origin
    4711                               number of records
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB…   RFC 6962 root, base64
                                       an empty line, then signatures
    — chatsvc.local/audit/2f6c… Az3g…  key name, base64(key id ‖ signature)

Every format has a Format/Parse pair, and parsing accepts only what formatting would have written, so that no bit of a
note can change unseen. A file of notes holds each note followed by an empty line. Knows nothing about records or files.

Specifications: c2sp.org/signed-note, c2sp.org/tlog-checkpoint.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from chatsvc.audit.format.tree import HASH_BYTES
from chatsvc.errors import ChatsvcError

_ED25519 = b"\x01"  # C2SP signed-note, signature types
_KEY_ID_BYTES = 4
_DASH = "\u2014 "


class NoteInvalid(ChatsvcError):
    """A note, key or checkpoint is not well formed, or its signature is wrong."""

    code = "note_invalid"
    message = "The signed note is not well formed or its signature is wrong."


class KeyUnknown(ChatsvcError):
    """No signature on the note is by a known key."""

    code = "key_unknown"
    message = "The note is signed by no known key."


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree head: after ``size`` records the root was ``root``."""

    origin: str
    size: int
    root: bytes


def format_checkpoint(checkpoint: Checkpoint) -> str:
    """The note text of a checkpoint."""
    return f"{checkpoint.origin}\n{checkpoint.size}\n{_to_base64(checkpoint.root)}\n"


def parse_checkpoint(text: str) -> Checkpoint:
    """Read a note text; extension lines are not used here and refused."""
    lines = text.split("\n")
    if len(lines) != 4 or lines[3] or not lines[0] or not (lines[1].isascii() and lines[1].isdecimal()):
        raise NoteInvalid
    checkpoint = Checkpoint(lines[0], int(lines[1]), _from_base64(lines[2]))
    if len(checkpoint.root) != HASH_BYTES or format_checkpoint(checkpoint) != text:
        raise NoteInvalid
    return checkpoint


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature line."""

    name: str
    key_id: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Note:
    """A text that ends in a newline, and its signatures."""

    text: str
    signatures: tuple[Signature, ...]


def format_note(note: Note) -> str:
    """The note as it is stored and sent."""
    lines = [f"{_DASH}{each.name} {_to_base64(each.key_id + each.value)}\n" for each in note.signatures]
    return note.text + "\n" + "".join(lines)


def parse_note(data: str) -> Note:
    """Read a note. The last empty line separates the text from the signatures."""
    text, separator, tail = data.rpartition("\n\n")
    if not separator or not tail.endswith("\n"):
        raise NoteInvalid
    note = Note(text + "\n", tuple(_parse_signature(line) for line in tail[:-1].split("\n")))
    if any(character < " " and character != "\n" for character in data):
        raise NoteInvalid
    return note


def _parse_signature(line: str) -> Signature:
    name, separator, encoded = line.removeprefix(_DASH).partition(" ")
    value = _from_base64(encoded)
    if not line.startswith(_DASH) or not separator or not is_key_name(name) or len(value) <= _KEY_ID_BYTES:
        raise NoteInvalid
    return Signature(name, value[:_KEY_ID_BYTES], value[_KEY_ID_BYTES:])


def is_key_name(name: str) -> bool:
    """C2SP: not empty, no Unicode space, no plus sign."""
    return bool(name) and "+" not in name and not any(character.isspace() for character in name)


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """An Ed25519 public key and its name."""

    name: str
    public: bytes

    @property
    def key_id(self) -> bytes:
        """C2SP: SHA-256(name ‖ newline ‖ 0x01 ‖ public key), the first four bytes."""
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.public).digest()[:_KEY_ID_BYTES]

    @property
    def fingerprint(self) -> str:
        """``SHA256:`` and the base64 of the public key's SHA-256, as ssh-keygen writes it: for people to compare.

        A key id has four bytes only, so another key with the same id can be found.
        """
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.public).digest()).decode().rstrip("=")


def format_vkey(key: VerifierKey) -> str:
    """``name+hex(key id)+base64(0x01 ‖ public key)``: the form Go's note package prints."""
    return f"{key.name}+{key.key_id.hex()}+{_to_base64(_ED25519 + key.public)}"


def parse_vkey(text: str) -> VerifierKey:
    """Read a verifier key."""
    name, _, rest = text.strip().partition("+")
    key = VerifierKey(name, _from_base64(rest.partition("+")[2])[1:])
    if not is_key_name(name) or len(key.public) != HASH_BYTES or format_vkey(key) != text.strip():
        raise NoteInvalid("The verifier key is not of the form name+id+key.")
    return key


def read_vkeys(path: Path) -> list[VerifierKey]:
    """The verifier keys of a file, one a line.

    Raises:
        NoteInvalid: a line is no key; the message names the file.
        OSError: it cannot be read.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    try:
        return [parse_vkey(line) for line in lines if line.strip()]
    except NoteInvalid as error:
        raise NoteInvalid(f"{path}: {error.message}") from None


class Signer:
    """Signs notes under one name. The private key stays inside."""

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.verifier_key = VerifierKey(name, key.public_key().public_bytes_raw())

    def sign(self, text: str) -> str:
        """The signed note over ``text``."""
        key = self.verifier_key
        return format_note(Note(text, (Signature(key.name, key.key_id, self._key.sign(text.encode())),)))


def open_note(data: str, keys: Iterable[VerifierKey]) -> str:
    """The text of a note, once a known key's signature has been verified.

    Raises:
        KeyUnknown: no signature is by one of ``keys``.
        NoteInvalid: not a note, or a known key's signature is wrong.
    """
    known = {(key.name, key.key_id): key for key in keys}
    note = parse_note(data)
    verified = False
    for signature in note.signatures:
        key = known.get((signature.name, signature.key_id))
        if key is None:
            continue
        try:
            Ed25519PublicKey.from_public_bytes(key.public).verify(signature.value, note.text.encode())
        except InvalidSignature:
            raise NoteInvalid(f"The signature of {key.name} on the note is wrong.") from None
        verified = True
    if not verified:
        raise KeyUnknown
    return note.text


def split_notes(data: bytes) -> tuple[list[str], bytes]:
    """The notes of a file of notes, and what is left of one that was not written to its end.

    Raises:
        NoteInvalid: not UTF-8.
    """
    notes, start = [], 0
    while (middle := data.find(b"\n\n", start)) >= 0 and (end := data.find(b"\n\n", middle + 2)) >= 0:
        notes.append(data[start : end + 1])
        start = end + 2
    try:
        return [note.decode() for note in notes], data[start:]
    except UnicodeDecodeError:
        raise NoteInvalid from None


def _to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _from_base64(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise NoteInvalid from None
    if _to_base64(data) != text:  # the unused bits of the last character
        raise NoteInvalid
    return data
