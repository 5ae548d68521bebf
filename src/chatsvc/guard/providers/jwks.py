"""Reads a provider's JSON Web Key Set and keeps the usable keys. Ignores all others (RFC 7517 section 5)."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from joserfc.errors import JoseError
from joserfc.jwk import JWKRegistry, Key, KeySet

_PUBLIC_KINDS = ("RSA", "EC", "OKP")

_log = logging.getLogger(__name__)


def usable_keys(document: Mapping[str, Any], algorithms: Collection[str]) -> KeySet:
    """The keys of a JWK set that can verify signatures of these algorithms.

    Skips keys of an unknown type or curve, for encryption, for another algorithm, and malformed ones.
    """
    found = document.get("keys")
    entries = found if isinstance(found, list) else []
    keys = [key for entry in entries if (key := _imported(entry, algorithms)) is not None]
    if len(keys) < len(entries) or not keys:
        _log.info("%d of the identity provider's %d keys can verify its tokens", len(keys), len(entries))
    return KeySet(keys)


def _imported(entry: object, algorithms: Collection[str]) -> Key | None:
    if not isinstance(entry, dict) or entry.get("kty") not in _PUBLIC_KINDS:
        return None
    operations = entry.get("key_ops", ["verify"])
    is_for_signatures = entry.get("use", "sig") == "sig" and isinstance(operations, list) and "verify" in operations
    if not is_for_signatures or entry.get("alg") not in [None, *algorithms]:
        return None
    try:
        key = JWKRegistry.import_key(entry)
        key.get_op_key("verify")
        key.ensure_kid()
    except (JoseError, UnsupportedAlgorithm, ValueError, TypeError, KeyError, AttributeError):
        return None
    return key
