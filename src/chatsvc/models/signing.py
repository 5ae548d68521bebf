"""The Ed25519 key that signs manifests: created on first use, 32 raw bytes, mode 0400, with its public key beside it.

Verifying needs the public file alone. Knows nothing about what is signed.
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from chatsvc.disk.durable import replace_file, write_file
from chatsvc.errors import OperatorError

_KEY_BYTES = 32
_CREDENTIALS = Path("/run/credentials")


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """The key pair of one purpose. Files are read or created only when needed."""

    folder: Path
    purpose: str = "model-signing"

    @property
    def private_file(self) -> Path:
        """32 raw bytes, mode 0400."""
        return self.folder / f"{self.purpose}.key"

    @property
    def public_file(self) -> Path:
        """The public key in hex."""
        return self.folder / f"{self.purpose}.pub"

    def ensure(self) -> Ed25519PrivateKey:
        """The private key, created when missing. The public file is rewritten where it does not match.

        Raises:
            OperatorError: the key is damaged, or readable by others.
        """
        path = self.private_file
        if not path.exists():
            self._make(path)
        key = Ed25519PrivateKey.from_private_bytes(read_secret(path, _KEY_BYTES))
        public_path = self.public_file
        public = key.public_key().public_bytes_raw().hex().encode() + b"\n"
        if not public_path.exists() or public_path.read_bytes() != public:
            replace_file(public_path, public, 0o444)
        return key

    def sign(self, message: bytes) -> bytes:
        """Sign with the private key, which is created when missing."""
        return self.ensure().sign(message)

    def public_bytes(self) -> bytes:
        """The public key, 32 bytes.

        Raises:
            OperatorError: it is missing or damaged.
        """
        try:
            public = bytes.fromhex((self.public_file).read_text(encoding="ascii").strip())
        except (OSError, ValueError) as error:
            raise OperatorError(f"{self.public_file}: cannot be read ({error}); restore it from a backup") from error
        if len(public) != _KEY_BYTES:
            raise OperatorError(f"{self.public_file}: is no Ed25519 public key; restore it from a backup")
        return public

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Whether our key signed ``message``; False without a public key."""
        try:
            Ed25519PublicKey.from_public_bytes(self.public_bytes()).verify(signature, message)
        except (InvalidSignature, ValueError, OperatorError):
            return False
        return True

    def _make(self, path: Path) -> None:
        with contextlib.suppress(FileExistsError):  # another process was quicker: use its key
            write_file(path, Ed25519PrivateKey.generate().private_bytes_raw(), 0o400)


def read_secret(path: Path, size_bytes: int) -> bytes:
    """A key file's bytes.

    Raises:
        OperatorError: it is missing, of another size, or readable by others.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            secret = file.read(size_bytes + 1)
    except OSError as error:
        raise OperatorError(f"{path}: cannot be read ({error.strerror}); restore it or name another file") from error
    # On a systemd credential the group bits show the mask of an access list, not a group's right (systemd.exec(5)).
    forbidden = stat.S_IRWXO if path.is_relative_to(_CREDENTIALS) else stat.S_IRWXO | stat.S_IRWXG
    if mode & forbidden:
        raise OperatorError(f"{path}: others may read or change it; run: chmod 0400 {path}")
    if len(secret) != size_bytes:
        raise OperatorError(
            f"{path}: must hold exactly {size_bytes} raw bytes; make one with: head -c {size_bytes} /dev/urandom"
        )
    return secret
