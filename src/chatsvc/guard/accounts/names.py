"""Names of accounts: which there can be, when two are the same, and how another authority's name becomes one of ours.

Two names are the same when they are equal after NFKC, case folding and without invisible characters (Unicode's
toNFKC_Casefold): ``Carol``, ``carol`` and ``ｃａｒｏｌ`` are one. The spelling that is shown is kept. Pure; knows
nothing about where names come from.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

_NAME = re.compile(r"[\w.@+-]{1,64}")
_OTHER_CHARACTERS = re.compile(r"[^\w.@+-]+")
# Unicode's Default_Ignorable_Code_Point: nothing is seen of them. Hangul fillers among them count as letters.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
# Longer ones are not looked at: normalising sorts runs of combining marks, in time that grows with their square.
MAX_TYPED_NAME = 256
_MAX_LENGTH = 64
# NFKC can make eighteen characters out of one; such a name has no use, and keys stand in an index.
_MAX_KEY_LENGTH = 128
_DIGEST_LENGTH = 8


def name_key(name: str) -> str:
    """What two spellings of one name have in common. Runs of white space count as one space.

    A text longer than ``MAX_TYPED_NAME`` is no name and stays as it is.
    """
    if len(name) > MAX_TYPED_NAME:
        return name
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    seen = unicodedata.normalize("NFKC", _INVISIBLE.sub("", folded))  # marks that were apart may join
    return " ".join(seen.split())


def normal_name(name: str) -> str | None:
    """The stored form of an account's name, or None where it cannot be one."""
    if len(name) > MAX_TYPED_NAME:
        return None
    composed = unicodedata.normalize("NFC", name)
    if not _NAME.fullmatch(composed) or not 0 < len(name_key(composed)) <= _MAX_KEY_LENGTH:
        return None
    return composed


def mapped_name(name: str) -> str | None:
    r"""Another authority's name as an account's name, or None where nothing is left of it.

    1. Every run of characters other than letters, digits and ``. _ @ + -`` becomes one ``_``: ``Pat O'Neil`` is
       ``Pat_O_Neil``, ``CORP\pat`` is ``CORP_pat``.
    2. A name that is too long keeps its beginning, then ``.`` and 8 hex digits of its SHA-256.
    """
    plain = _OTHER_CHARACTERS.sub("_", unicodedata.normalize("NFC", name[:MAX_TYPED_NAME]).strip())
    if not plain.strip("_"):
        return None
    if len(plain) <= _MAX_LENGTH and normal_name(plain) is not None:
        return plain
    for length in (_MAX_LENGTH - _DIGEST_LENGTH - 1, _DIGEST_LENGTH // 2):  # the second: of characters that grow
        if (cut := normal_name(with_digest(plain[:length], name))) is not None:
            return cut
    return None


def with_digest(name: str, source: str) -> str:
    """The beginning of a name, made unique by 8 hex digits of the SHA-256 of what tells its owner from others."""
    digest = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST_LENGTH]
    return f"{name[: _MAX_LENGTH - _DIGEST_LENGTH - 1]}.{digest}"
