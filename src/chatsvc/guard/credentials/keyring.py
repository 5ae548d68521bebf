"""The ring of signing keys: files in a directory, the newest signs, older ones verify until no token can need them.

A key is one file ``signing-<kid>.<algorithm>``, mode 0600: 32 random bytes for HS256, a PKCS 8 PEM for EdDSA. A ``kid``
is the second it was made and eight random characters, so names sort by age, also when the clock was set back: a new key
is never named older than what is there. A key is only ever looked up in the map of
files read before: no ``kid`` from the wire becomes a path. Knows nothing about tokens.
"""

from __future__ import annotations

import base64
import itertools
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from chatsvc.disk.durable import write_file
from chatsvc.disk.lock import Lock
from chatsvc.errors import OperatorError

_MIN_SECRET_BYTES = 32
_RESCAN_EVERY_S = 1.0
_RESCAN_UNKNOWN_EVERY_S = 0.05


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One key. For HS256 both halves are the same bytes."""

    kid: str
    made_at: int
    private: bytes | Ed25519PrivateKey
    public: bytes | Ed25519PublicKey


class KeyRing:
    """The keys of one directory and one algorithm.

    Args:
        directory: where the files are; made with mode 0700 when missing, and the first key too.
        algorithm: ``HS256`` or ``EdDSA``; files of the other are not looked at.
        keep_s: how long a superseded key can still be needed: the longest lifetime of a token, and the leeway.
        clock: Unix seconds; which key signs does not go by it.
    """

    def __init__(
        self,
        directory: Path,
        algorithm: str,
        *,
        keep_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.algorithm = algorithm
        self._directory = directory
        self._keep_s = keep_s
        self._clock = clock
        self._keys: dict[str, SigningKey] = {}
        self._scanned_at = float("-inf")
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._directory_lock():
            self._scan()
            if not self._keys:
                self._write_new()
                self._scan()

    def current(self) -> SigningKey:
        """The key that signs."""
        self._rescan_if_older_than(_RESCAN_EVERY_S)
        return max(self._keys.values(), key=lambda key: key.kid)

    def find(self, kid: str) -> SigningKey | None:
        """The key of that name, or None. One that another process has just made is found too."""
        if kid not in self._keys:
            self._rescan_if_older_than(_RESCAN_UNKNOWN_EVERY_S)
        else:
            self._rescan_if_older_than(_RESCAN_EVERY_S)
        return self._keys.get(kid)

    def rotate(self) -> str:
        """Make a new key that signs from now on, drop those nobody can need; returns the new ``kid``."""
        with self._directory_lock():
            kid = self._write_new()
            self._scan()
            self._drop_old()
        return kid

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """The public keys as a JSON Web Key Set (RFC 7517, RFC 8037); empty for HS256, whose keys are all secret."""
        self._rescan_if_older_than(_RESCAN_EVERY_S)
        return {
            "keys": [
                {"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": key.kid, "x": _raw(key.public)}
                for key in self._keys.values()
                if isinstance(key.public, Ed25519PublicKey)
            ]
        }

    @property
    def _suffix(self) -> str:
        return f".{self.algorithm.lower()}"

    def _rescan_if_older_than(self, age_s: float) -> None:
        # Two threads that find it due both look: that is cheaper than to wait for each other.
        # A clock that was put right may be years away in either direction.
        if abs(self._clock() - self._scanned_at) >= age_s:
            self._scan()

    def _scan(self) -> None:
        """Read files that are new, forget those that are gone. A key once read is not read again."""
        self._scanned_at = self._clock()
        found: dict[str, SigningKey] = {}
        for path in sorted(self._directory.glob(f"signing-*{self._suffix}")):
            kid = path.name.removeprefix("signing-").removesuffix(self._suffix)
            try:
                found[kid] = self._keys.get(kid) or _read(path, kid)
            except (OperatorError, OSError):
                if not self._keys:
                    raise  # at the start: nothing runs on half a ring
                # Put there while we run: what is no key does not end the sessions of all the others.
        if found or not self._keys:  # an emptied directory must not end every session while we run
            self._keys = found

    def _write_new(self) -> str:
        # Never older than what is there, even when the clock went back: the newest must sign.
        newest = max((key.made_at + 1 for key in self._keys.values()), default=0)
        kid = f"{max(int(self._clock()), newest):010d}-{secrets.token_hex(4)}"
        data = secrets.token_bytes(32) if self.algorithm == "HS256" else _new_ed25519()
        write_file(self._path(kid), data)
        return kid

    def _drop_old(self) -> None:
        """A key is needed until the lifetime after its successor began to sign has passed.

        A name from the future is of a clock that was ahead, or follows such a name; then the file tells its age.
        Where that is in the future as well, nobody knows, and a key that was replaced must not verify for years.
        """
        ordered = sorted(self._keys.values(), key=lambda key: key.kid)
        for key, successor in itertools.pairwise(ordered):
            made_at: float = successor.made_at
            if made_at > self._clock():
                made_at = self._path(successor.kid).stat().st_mtime
            if abs(self._clock() - made_at) > self._keep_s:
                self._path(key.kid).unlink(missing_ok=True)
        self._scan()

    def _path(self, kid: str) -> Path:
        return self._directory / f"signing-{kid}{self._suffix}"

    def _directory_lock(self) -> Lock:
        return Lock(self._directory / ".lock")


def read_or_make_secret(path: Path) -> bytes:
    """32 random bytes of an installation, made on first use."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with Lock(path.with_name(".lock")):
        if not path.exists():
            write_file(path, secrets.token_bytes(32))
        return path.read_bytes()


def _read(path: Path, kid: str) -> SigningKey:
    data = path.read_bytes()
    try:
        made_at = int(kid.partition("-")[0])
        if path.suffix == ".hs256":
            if len(data) < _MIN_SECRET_BYTES:
                raise OperatorError(f"{path} holds fewer than {_MIN_SECRET_BYTES} bytes; remove it")
            return SigningKey(kid, made_at, data, data)
        private = load_pem_private_key(data, None)
    except (ValueError, TypeError) as error:
        raise OperatorError(f"{path} is not a signing key; remove it") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise OperatorError(f"{path} is not an Ed25519 key; remove it")
    return SigningKey(kid, made_at, private, private.public_key())


def _new_ed25519() -> bytes:
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _raw(key: Ed25519PublicKey) -> str:
    return base64.urlsafe_b64encode(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).rstrip(b"=").decode("ascii")
