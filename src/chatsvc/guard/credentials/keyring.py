"""The signing keys: files in a directory. The newest signs; older ones verify as long as tokens may need them.

A key is a file ``signing-<kid>.<algorithm>`` of mode 0600: 32 random bytes for HS256, a PKCS 8 PEM for EdDSA. A ``kid``
is the Unix second of its creation and eight random hex digits. A new ``kid`` is always larger than the existing ones,
even if the clock was set back, so keys sort by age. A ``kid`` from a token is only looked up among the files read
before; it never becomes a path. Knows nothing about tokens.
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
    """A key; ``made_at`` is in Unix seconds. For HS256 both halves are the same bytes."""

    kid: str
    made_at: int
    private: bytes | Ed25519PrivateKey
    public: bytes | Ed25519PublicKey


class KeyRing:
    """The keys of one directory and one algorithm.

    Args:
        directory: holds the files; created with mode 0700, and with a first key, if missing.
        algorithm: ``HS256`` or ``EdDSA``; files of the other are ignored.
        keep_s: how long a replaced key is kept: the longest lifetime of a token, plus the leeway.
        clock: Unix seconds; it does not decide which key signs.

    Raises:
        OperatorError: a file is not a key of that algorithm.
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
        """The key with that ``kid``, or None. Also finds a key that another process has just made."""
        self._rescan_if_older_than(_RESCAN_EVERY_S if kid in self._keys else _RESCAN_UNKNOWN_EVERY_S)
        return self._keys.get(kid)

    def rotate(self) -> str:
        """Make a new key that signs from now on and delete keys no token needs; returns the new ``kid``."""
        with self._directory_lock():
            kid = self._write_new()
            self._scan()
            self._drop_old()
        return kid

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """The public keys as a JSON Web Key Set (RFC 7517, RFC 8037); empty for HS256, which has no public keys."""
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
        # Without a lock: two threads may both rescan, which costs less than waiting for each other.
        # abs(): the clock may have been set by years in either direction.
        if abs(self._clock() - self._scanned_at) >= age_s:
            self._scan()

    def _scan(self) -> None:
        """Read new files, forget deleted ones. A file is read only once."""
        self._scanned_at = self._clock()
        found: dict[str, SigningKey] = {}
        for path in sorted(self._directory.glob(f"signing-*{self._suffix}")):
            kid = path.name.removeprefix("signing-").removesuffix(self._suffix)
            try:
                found[kid] = self._keys.get(kid) or _read(path, kid)
            except (OperatorError, OSError):
                if not self._keys:
                    raise  # at start: do not run with only a part of the keys
                # At run time, a broken file must not end the sessions of the other keys.
        if found or not self._keys:  # at run time, an emptied directory must not end every session
            self._keys = found

    def _write_new(self) -> str:
        # Newer than all others even if the clock was set back: the newest key signs.
        newest = max((key.made_at + 1 for key in self._keys.values()), default=0)
        kid = f"{max(int(self._clock()), newest):010d}-{secrets.token_hex(4)}"
        data = secrets.token_bytes(32) if self.algorithm == "HS256" else _new_ed25519()
        write_file(self._path(kid), data)
        return kid

    def _drop_old(self) -> None:
        """Delete each key whose successor has signed for longer than ``keep_s``.

        If the successor's ``kid`` lies in the future, because a clock was ahead, its file's mtime counts instead. If
        that lies in the future too, its age is unknown: the key is deleted once the two differ by more than ``keep_s``,
        so that a replaced key does not verify for years.
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
    """A file's secret: 32 random bytes, made on first use."""
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
