"""Verifies a chatsvc kit with Python's standard library and a public key alone.

It is one file, so it can be reviewed and kept.

``python3 kit_verify.py KIT.tar PUBLIC_KEY`` exits 0 if the kit is what was signed, 1 if it differs (and lists the
differences), 3 when it cannot be read. ``chatsvc bundle verify`` calls the same code. A kit is a tar archive of one
folder with ``manifest.json`` (every file's size and SHA-256), ``manifest.sig`` (Ed25519 over the context line and the
bytes of the manifest, in hex) and those files. No file of the kit is run or written.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
CONTEXT = b"chatsvc kit manifest v1\n"
EXIT_DIFFERS, EXIT_USAGE, EXIT_COULD_NOT = 1, 2, 3
_BLOCK = 1 << 20
_MAX_MANIFEST_BYTES = 16 << 20
_MAX_HEADER_BYTES = 1 << 16
_MAX_MEMBERS = 100_000
_PLAIN_TYPES = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE})
_HEADER_TYPES = frozenset({tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK})


class KitDiffers(Exception):
    """The kit is not what was signed; the argument lists every difference."""


class KitError(Exception):
    """The kit could not be verified or installed."""


# Ed25519 verification, RFC 8032 section 5.1.7: slow, and without secrets.

_P = 2**255 - 19
_L = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, _P - 2, _P) % _P
_SQRT_M1 = pow(2, (_P - 1) // 4, _P)
_Point = tuple[int, int, int, int]


def verify_signature(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether ``signature`` is the key's over ``message``."""
    if len(public_key) != 32 or len(signature) != 64:
        return False
    key, commitment = _decompress(public_key), _decompress(signature[:32])
    scalar = int.from_bytes(signature[32:], "little")
    if key is None or commitment is None or scalar >= _L:
        return False
    challenge = int.from_bytes(hashlib.sha512(signature[:32] + public_key + message).digest(), "little") % _L
    left, right = _multiply(scalar, _base()), _add(commitment, _multiply(challenge, key))
    # Equal as fractions: x1/z1 = x2/z2 and y1/z1 = y2/z2.
    return (left[0] * right[2] - right[0] * left[2]) % _P == 0 and (left[1] * right[2] - right[1] * left[2]) % _P == 0


def _add(one: _Point, other: _Point) -> _Point:
    a, b = (one[1] - one[0]) * (other[1] - other[0]) % _P, (one[1] + one[0]) * (other[1] + other[0]) % _P
    c, d = 2 * one[3] * other[3] * _D % _P, 2 * one[2] * other[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _multiply(scalar: int, point: _Point) -> _Point:
    total: _Point = (0, 1, 1, 0)
    while scalar:
        if scalar & 1:
            total = _add(total, point)
        point = _add(point, point)
        scalar >>= 1
    return total


def _base() -> _Point:
    y = 4 * pow(5, _P - 2, _P) % _P
    x = _x_of(y, sign=0)
    assert x is not None
    return x, y, 1, x * y % _P


def _x_of(y: int, *, sign: int) -> int | None:
    square = (y * y - 1) * pow(_D * y * y + 1, _P - 2, _P) % _P
    if y >= _P or (square == 0 and sign):
        return None
    x = pow(square, (_P + 3) // 8, _P)
    if (x * x - square) % _P:
        x = x * _SQRT_M1 % _P
    if (x * x - square) % _P:
        return None
    return _P - x if x & 1 != sign else x


def _decompress(encoded: bytes) -> _Point | None:
    number = int.from_bytes(encoded, "little")
    y, sign = number & ((1 << 255) - 1), number >> 255
    x = _x_of(y, sign=sign)
    return None if x is None else (x, y, 1, x * y % _P)


@dataclass(frozen=True)
class Kit:
    """A verified kit. ``digest`` is its manifest's SHA-256; ``root`` the one folder in the archive."""

    archive: Path
    root: str
    manifest: dict[str, Any]
    digest: str

    @property
    def release(self) -> str:
        """The release folder's name."""
        return f"{self.manifest['version']}-{self.digest[:12]}"


class Member(tarfile.TarInfo):
    """A member whose extended headers are bounded: tarfile reads those into memory on the way to the next member."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type not in _PLAIN_TYPES and (self.type not in _HEADER_TYPES or self.size > _MAX_HEADER_BYTES):
            raise tarfile.ReadError(f"a member of type {self.type!r} with {self.size} bytes")
        return super()._proc_member(tar)  # type: ignore[misc,no-any-return]  # tarfile documents it for subclasses


def verify(archive: Path, public_key: bytes) -> Kit:
    """Compare the archive with its signed manifest. A file whose size differs from the signed one is not read.

    Raises:
        KitDiffers: naming every file that differs.
        KitError: it cannot be read.
    """
    try:
        with tarfile.open(archive, "r:", tarinfo=Member) as tar:
            members, roots, problems = _members(tar, archive.stat().st_size)
            kept = {path: _small(tar, members[path]) for path in (MANIFEST, SIGNATURE) if path in members}
            manifest = _signed_manifest(kept, public_key)
            measured = {
                path: (member.size, _digest(tar, member) if path in _expected(manifest, member.size) else "")
                for path, member in members.items()
            }
    except (OSError, tarfile.TarError, EOFError, ValueError, RecursionError) as error:
        raise KitError(f"{archive}: cannot be read as a kit ({error})") from error
    problems += _differences(manifest, measured) + ([] if len(roots) == 1 else ["more than one folder"])
    if problems:
        raise KitDiffers("\n".join(sorted(problems)))
    return Kit(archive, roots.pop(), manifest, hashlib.sha256(kept[MANIFEST]).hexdigest())


def _members(tar: tarfile.TarFile, archive_bytes: int) -> tuple[dict[str, tarfile.TarInfo], set[str], list[str]]:
    """The files by path, the top folders, and members that no kit may have; only headers are read.

    Raises:
        tarfile.TarError: they are more, or larger, than the archive can hold.
    """
    members: dict[str, tarfile.TarInfo] = {}
    roots: set[str] = set()
    problems: list[str] = []
    total = 0
    for number, member in enumerate(tar):
        root, _, path = member.name.partition("/")
        roots.add(root)
        total += member.size
        if number >= _MAX_MEMBERS or member.size < 0 or total > archive_bytes or member.issparse():
            raise tarfile.ReadError(f"{member.name[:200]}: sparse, or more than the archive holds")
        if member.isdir():
            continue
        if not member.isreg() or not _is_plain(member.name) or path in members:
            problems.append(f"{member.name}: is no plain file, leaves the folder, or appears twice")
            continue
        members[path] = member
    return members, roots, problems


def _is_plain(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return len(parts) > 1 and ".." not in parts and "/".join(parts) == name and parts[0] != "/" and "\\" not in name


def _small(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > _MAX_MANIFEST_BYTES:
        raise tarfile.ReadError(f"{member.name} is too large")
    reader = tar.extractfile(member)
    assert reader is not None  # it is a regular file
    return reader.read(_MAX_MANIFEST_BYTES)


def _digest(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    reader = tar.extractfile(member)
    assert reader is not None  # it is a regular file
    digest = hashlib.sha256()
    while block := reader.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


def _expected(manifest: dict[str, Any], size: int) -> set[str]:
    """The files that were signed with this size."""
    return {entry["path"] for entry in manifest["files"] if entry["size"] == size}


def _signed_manifest(kept: dict[str, bytes], public_key: bytes) -> dict[str, Any]:
    if kept.keys() != {MANIFEST, SIGNATURE}:
        raise KitDiffers(f"{MANIFEST} or {SIGNATURE} is missing")
    try:
        signature = bytes.fromhex(kept[SIGNATURE].decode("ascii").strip())
    except ValueError as error:
        raise KitDiffers(f"{SIGNATURE}: is not a signature") from error
    if not verify_signature(public_key, signature, CONTEXT + kept[MANIFEST]):
        raise KitDiffers(f"{MANIFEST}: is not signed by this key")
    manifest: dict[str, Any] = json.loads(kept[MANIFEST])
    return manifest


def _differences(manifest: dict[str, Any], measured: dict[str, tuple[int, str]]) -> list[str]:
    expected = {entry["path"]: (entry["size"], entry["sha256"]) for entry in manifest["files"]}
    found = {path: value for path, value in measured.items() if path not in {MANIFEST, SIGNATURE}}
    return (
        [f"{path}: missing" for path in expected.keys() - found.keys()]
        + [f"{path}: extra" for path in found.keys() - expected.keys()]
        + [f"{path}: changed" for path in expected.keys() & found.keys() if expected[path] != found[path]]
    )


def read_public_key(text: str) -> bytes:
    """The key itself in hex, or a file that holds it.

    Raises:
        KitError: it is neither.
    """
    try:
        key = bytes.fromhex(Path(text).read_text("ascii").strip() if Path(text).exists() else text)
    except (OSError, ValueError) as error:
        raise KitError(f"{text}: is no Ed25519 public key in hex, nor a file that holds one") from error
    if len(key) != 32:
        raise KitError(f"{text}: an Ed25519 public key has 32 bytes")
    return key


def main(arguments: list[str]) -> int:
    """Verify; returns the exit code."""
    if len(arguments) != 2:
        print("usage: python3 kit_verify.py KIT.tar PUBLIC_KEY (in hex, or a file)", file=sys.stderr)
        return EXIT_USAGE
    return guarded(lambda: f"verified: {report(verify(Path(arguments[0]), read_public_key(arguments[1])))}")


def report(kit: Kit) -> str:
    """One line about a verified kit."""
    return f"{len(kit.manifest['files'])} files, release {kit.release}, model {kit.manifest['model'] or 'none'}"


def guarded(work: Callable[[], str]) -> int:
    """Run ``work`` and print its report; a problem is printed and becomes an exit code."""
    try:
        print(work())
    except KitDiffers as problem:
        print(f"THE KIT DIFFERS from what was signed:\n{problem}", file=sys.stderr)
        return EXIT_DIFFERS
    except (KitError, OSError) as problem:
        print(problem, file=sys.stderr)
        return EXIT_COULD_NOT
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
