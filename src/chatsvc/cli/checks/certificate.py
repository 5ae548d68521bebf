"""Makes a self-signed certificate, for a first try of TLS. Knows nothing about nginx."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

CHAIN, KEY = "chain.pem", "key.pem"
_DAYS = 365
_CLOCK_MARGIN = dt.timedelta(hours=1)


def make_unless_there(folder: Path, server_name: str, now: dt.datetime | None = None) -> Path | None:
    """Write ``chain.pem`` and ``key.pem`` (P-256, one year) for one host name; None if there is a chain already.

    The folder's group may read the key too, because nginx runs under another account.
    """
    chain = folder / CHAIN
    if chain.exists():
        return None
    folder.mkdir(parents=True, exist_ok=True)
    start = now or dt.datetime.now(dt.UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, server_name)])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - _CLOCK_MARGIN)
        .not_valid_after(start + dt.timedelta(days=_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(server_name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    _write(folder / KEY, key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain), 0o640)
    _write(chain, made.public_bytes(pem), 0o644)
    return chain


def _write(path: Path, content: bytes, mode: int) -> None:
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:  # noqa: PTH123  (a descriptor)
        file.write(content)
