"""``manifest.json``: the exact set of files of a model folder, with sizes and SHA-256, signed with Ed25519.

The file is canonical JSON (RFC 8785) with the members ``v, name, files, key_id, signature``; the signature is over the
same object without ``signature``, after a context line. A file of the set has ``path, size, sha256`` and ``stamp``
(modification and change time in ns at signing). While size and stamp are unchanged, a fast check does not hash the
file again: a process that can only write the file cannot set its change time back. ``full`` hashes everything.

The folder must hold exactly this set. An extra or missing file, a symbolic link, a sub-folder, or a file that could
hold code is refused, always with the same message. Knows nothing about what the files mean.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
import rfc8785

from chatsvc.disk.durable import replace_file
from chatsvc.disk.files import (
    GROUP_FILE,
    GROUP_FOLDER,
    PRIVATE_FILE,
    Progress,
    group_may_read,
    no_progress,
    open_regular,
    sha256_of,
)
from chatsvc.errors import ModelRefused
from chatsvc.models.signing import SigningKeys

MANIFEST_FILE = "manifest.json"
_CONTEXT = b"chatsvc model manifest v1\n"
_MAX_MANIFEST_BYTES = 1 << 20

# Refused even when listed: code, and formats that run code when they are opened.
_CODE_SUFFIXES = frozenset(
    {".py", ".pyc", ".so", ".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".npy", ".npz", ".h5", ".msgpack"}
)
# OpenVINO's raw weights end in .bin as torch's pickles do; the name and the first bytes tell them apart.
_OPENVINO_BINS = frozenset({"openvino_model.bin", "openvino_tokenizer.bin", "openvino_detokenizer.bin"})
_PICKLE_MAGICS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file as it was signed."""

    path: str
    size: int
    sha256: str
    stamp: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The manifest; ``signature`` is base64."""

    v: int
    name: str
    files: list[FileEntry]
    key_id: str
    signature: str = ""

    def message(self) -> bytes:
        """The bytes that are signed."""
        unsigned = msgspec.to_builtins(self)
        del unsigned["signature"]
        return _CONTEXT + rfc8785.dumps(unsigned)

    def encode(self) -> bytes:
        """The file's bytes."""
        return rfc8785.dumps(msgspec.to_builtins(self))

    def entry(self, path: str) -> FileEntry:
        """The entry of one file.

        Raises:
            ModelRefused: the set does not hold it.
        """
        for entry in self.files:
            if entry.path == path:
                return entry
        raise ModelRefused


def is_code(name: str, head: bytes) -> bool:
    """Whether a file may run code when it is opened, by its name and its first bytes."""
    suffix = Path(name).suffix.lower()
    if suffix in _CODE_SUFFIXES:
        return True
    if suffix == ".bin" and name not in _OPENVINO_BINS:
        return True
    return head.startswith(_PICKLE_MAGICS) and not name.endswith((".gguf", ".json", ".jinja"))


def write(folder: Path, name: str, keys: SigningKeys, progress: Progress = no_progress) -> Manifest:
    """Sign the folder as it is now, replacing an older manifest.

    Raises:
        ModelRefused: it holds something that no model folder may hold.
    """
    names = [path for path in _names(folder) if path != MANIFEST_FILE]
    is_shared = group_may_read(folder.parent)
    if is_shared:
        _share(folder, names)
    files = [_measure(folder, path, progress) for path in names]
    unsigned = Manifest(v=1, name=name, files=files, key_id=_key_id(keys))
    signature = base64.b64encode(keys.sign(unsigned.message())).decode()
    manifest = msgspec.structs.replace(unsigned, signature=signature)
    replace_file(folder / MANIFEST_FILE, manifest.encode(), GROUP_FILE if is_shared else PRIVATE_FILE)
    if is_shared:
        folder.chmod(GROUP_FOLDER)
    return manifest


def _share(folder: Path, names: Sequence[str]) -> None:
    """Called before the files are measured: a change of mode changes a file's times."""
    for name in names:
        if not (folder / name).is_symlink():
            (folder / name).chmod(GROUP_FILE)


def read(folder: Path, keys: SigningKeys) -> tuple[Manifest, str]:
    """The manifest and its digest, with its signature verified. The files themselves are not checked.

    Raises:
        ModelRefused: missing, damaged, or not signed by our key.
    """
    content = read_bounded(folder / MANIFEST_FILE, _MAX_MANIFEST_BYTES)
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
        signature = base64.b64decode(manifest.signature, validate=True)
    except ValueError as error:  # msgspec.DecodeError and binascii.Error are ValueErrors
        raise ModelRefused from error
    # Only the canonical form is accepted: a second encoding would give one model two digests.
    if manifest.v != 1 or manifest.encode() != content or not keys.verify(signature, manifest.message()):
        raise ModelRefused
    return manifest, hashlib.sha256(content).hexdigest()


def check(folder: Path, manifest: Manifest, *, full: bool, progress: Progress = no_progress) -> None:
    """Compare the folder with its manifest.

    Raises:
        ModelRefused: at the first difference.
    """
    if sorted(_names(folder)) != sorted([MANIFEST_FILE, *(entry.path for entry in manifest.files)]):
        raise ModelRefused
    for entry in manifest.files:
        _check_file(folder, entry, full=full, progress=progress)


def read_checked(folder: Path, manifest: Manifest, path: str, max_bytes: int) -> bytes:
    """A small file's bytes. The hash is taken of the very bytes that are returned.

    Raises:
        ModelRefused: it differs from the manifest.
    """
    entry = manifest.entry(path)
    content = read_bounded(folder / path, max_bytes)
    if len(content) != entry.size or hashlib.sha256(content).hexdigest() != entry.sha256:
        raise ModelRefused
    return content


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """The bytes of a regular file of at most ``max_bytes``.

    Raises:
        ModelRefused: it cannot be read, is no regular file, or is larger.
    """
    try:
        with open_regular(path) as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise ModelRefused from error
    if len(content) > max_bytes:
        raise ModelRefused
    return content


def _check_file(folder: Path, entry: FileEntry, *, full: bool, progress: Progress) -> None:
    try:
        with open_regular(folder / entry.path) as file:
            status = os.fstat(file.fileno())
            unchanged = status.st_size == entry.size and _stamp(status) == entry.stamp
            if unchanged and not full:
                return
            if is_code(entry.path, file.read(4)) or status.st_size != entry.size:
                raise ModelRefused
            if sha256_of(file, progress, f"verifying {entry.path}") != entry.sha256:
                raise ModelRefused
    except OSError as error:
        raise ModelRefused from error


def _measure(folder: Path, path: str, progress: Progress) -> FileEntry:
    try:
        with open_regular(folder / path) as file:
            if is_code(path, file.read(4)):
                raise ModelRefused
            digest = sha256_of(file, progress, f"signing {path}")
            status = os.fstat(file.fileno())
            return FileEntry(path=path, size=status.st_size, sha256=digest, stamp=_stamp(status))
    except OSError as error:
        raise ModelRefused from error


def _names(folder: Path) -> Sequence[str]:
    """All names in the folder. Sub-folders and links are refused later, when they are opened."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise ModelRefused from error


def _stamp(status: os.stat_result) -> str:
    """As text: nanoseconds since 1970 are more than the numbers of canonical JSON can hold."""
    return f"{status.st_mtime_ns}.{status.st_ctime_ns}"


def _key_id(keys: SigningKeys) -> str:
    keys.ensure()
    return hashlib.sha256(keys.public_bytes()).hexdigest()[:16]
