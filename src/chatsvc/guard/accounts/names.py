"""Account names: which are allowed, which are equal, and how a directory's name becomes one of ours.

Two names are equal if they are after NFKC and case folding, without invisible characters (Unicode's toNFKC_Casefold):
``Carol``, ``carol`` and ``ｃａｒｏｌ`` are one name. The original spelling is stored and shown. Pure; knows nothing
about where names come from.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

_NAME = re.compile(r"[\w.@+-]{1,64}")
_OTHER_CHARACTERS = re.compile(r"[^\w.@+-]+")
# Unicode's Default_Ignorable_Code_Point: invisible characters. The Hangul fillers among them count as letters in \w.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
# Longer input is not normalised: sorting a run of combining marks takes time quadratic in its length.
MAX_TYPED_NAME = 256
_MAX_LENGTH = 64
# NFKC can turn one character into eighteen. Keys are indexed, so they are bounded.
_MAX_KEY_LENGTH = 128
_DIGEST_LENGTH = 8


def name_key(name: str) -> str:
    """The form in which names are compared. Runs of white space become one space.

    A text longer than ``MAX_TYPED_NAME`` is no name and is returned unchanged.
    """
    if len(name) > MAX_TYPED_NAME:
        return name
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    seen = unicodedata.normalize("NFKC", _INVISIBLE.sub("", folded))  # combining marks may now be adjacent
    return " ".join(seen.split())


def normal_name(name: str) -> str | None:
    """The stored form of an account name (NFC), or None if it is not allowed."""
    if len(name) > MAX_TYPED_NAME:
        return None
    composed = unicodedata.normalize("NFC", name)
    if not _NAME.fullmatch(composed) or not 0 < len(name_key(composed)) <= _MAX_KEY_LENGTH:
        return None
    return composed


def mapped_name(name: str) -> str | None:
    r"""A directory's or provider's name as an account name, or None if no allowed character is left.

    1. Every run of characters other than letters, digits and ``. _ @ + -`` becomes one ``_``: ``Pat O'Neil`` becomes
       ``Pat_O_Neil``, ``CORP\pat`` becomes ``CORP_pat``.
    2. A name that is too long is cut, and ``.`` and 8 hex digits of its SHA-256 are appended.
    """
    plain = _OTHER_CHARACTERS.sub("_", unicodedata.normalize("NFC", name[:MAX_TYPED_NAME]).strip())
    if not plain.strip("_"):
        return None
    if len(plain) <= _MAX_LENGTH and normal_name(plain) is not None:
        return plain
    # A name that NFKC expands too much is cut to four characters: NFKC makes at most eighteen of one.
    return normal_name(with_digest(plain, name)) or normal_name(with_digest(plain[:4], name))


def with_digest(name: str, source: str) -> str:
    """The beginning of a name, ``.`` and 8 hex digits of the SHA-256 of ``source``, which identifies the owner."""
    digest = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST_LENGTH]
    return f"{name[: _MAX_LENGTH - _DIGEST_LENGTH - 1]}.{digest}"
