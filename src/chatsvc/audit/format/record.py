"""A record: one RFC 8785 (canonical JSON) object a line. docs/reference/audit-format.md lists its fields.

Knows how a record is written and read, and nothing about chains, files or keys. A record holds text, integers,
booleans, null, lists and objects; never a fraction, so that every language reads the same numbers.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import rfc8785

from chatsvc.audit.facts import Facts, Result
from chatsvc.audit.format.tree import leaf_hash
from chatsvc.errors import ChatsvcError

VERSION = 1
FIRST_PREV = leaf_hash(b"")  # the predecessor hash of a log's first record
MAX_LINE_BYTES = 16 * 1024 * 1024
MAX_TEXT = 65_536
MAX_INTEGER = 2**53 - 1  # RFC 8785 via I-JSON
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FREE = frozenset(("details", "segment"))  # objects with any keys in them
_fast = msgspec.json.Encoder(order="sorted")

Record = dict[str, Any]


class RecordInvalid(ChatsvcError):
    """A line is not a record."""

    code = "record_invalid"
    message = "The line is not a record in canonical JSON."


def encode(record: Record) -> bytes:
    """RFC 8785. For ASCII text without free-form objects msgspec gives the same bytes, thirty times faster."""
    if not _FREE.intersection(record):
        line = _fast.encode(record)
        if line.isascii():
            return line
    return rfc8785.dumps(record)


def decode(line: bytes) -> Record:
    """Read a line (without its newline).

    Raises:
        RecordInvalid: not an object, or not in the canonical form of RFC 8785.
    """
    try:
        record = msgspec.json.decode(line)
        if isinstance(record, dict) and encode(record) == line and _is_plain(record.values()):
            return record
    except (msgspec.DecodeError, UnicodeDecodeError, rfc8785.CanonicalizationError, RecursionError):
        pass
    raise RecordInvalid


def _is_plain(values: Iterable[Any]) -> bool:
    """Neither fractions nor integers that a language may round."""
    for value in values:
        kind = type(value)
        if kind is float or (kind is int and not -MAX_INTEGER <= value <= MAX_INTEGER):
            return False
        if (kind is dict or kind is list) and not _is_plain(value.values() if kind is dict else value):
            return False
    return True


def seal(record: Record, mac_key: bytes) -> bytes:
    """The finished line: ``mac`` is HMAC-SHA256 over the canonical record without it."""
    return encode(record | {"mac": compute_mac(record, mac_key)})


def compute_mac(record: Record, mac_key: bytes) -> str:
    """HMAC-SHA256, hex, over the record without its ``mac``."""
    bare = {name: value for name, value in record.items() if name != "mac"}
    return hmac.digest(mac_key, encode(bare), "sha256").hex()


def mac_fits(line: bytes, mac: str, mac_key: bytes) -> bool:
    """Whether a canonical line carries the right MAC.

    Members are sorted and ``mac`` is never the last, so cutting it out of the line gives the record without it.
    """
    bare = line.replace(f'"mac":"{mac}",'.encode(), b"", 1)
    return hmac.digest(mac_key, bare, "sha256").hex() == mac


def format_time(microseconds: int) -> str:
    """``2026-11-22T12:00:00.000000Z`` of Unix microseconds."""
    return (_EPOCH + timedelta(microseconds=microseconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str) -> int:
    """Unix microseconds of what :func:`format_time` wrote."""
    try:
        moment = datetime.fromisoformat(text)
        microseconds = (moment - _EPOCH) // timedelta(microseconds=1)
    except (ValueError, TypeError):
        raise RecordInvalid(f"{text!r} is not a time.") from None
    if format_time(microseconds) != text:
        raise RecordInvalid(f"{text!r} is not a time.")
    return microseconds


class Pseudonyms:
    """Keyed hashes of what must not be readable. An unkeyed hash of a short text could be guessed."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, kind: str, value: str | None) -> str | None:
        """HMAC-SHA256(key, kind ‖ ``:`` ‖ value), hex."""
        if value is None:
            return None
        return hmac.new(self._key, f"{kind}:{value}".encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def describe(stage: str, facts: Facts, result: Result | None, pseudonyms: Pseudonyms) -> Record:
    """The fields that come from the service; every field of the format is present, null if it has no value."""
    record: Record = {
        "v": VERSION,
        "request_id": plain(facts.request_id) or None,
        "stage": stage,
        "action": plain(facts.action),
        "outcome": plain(result.outcome) if result else None,
        "actor": plain(facts.actor),
        "sid": plain(facts.sid),
        "jti_hmac": pseudonyms.of("jti", facts.jti),
        "address": plain(facts.address),
        "method": plain(facts.method),
        "route": plain(facts.route),
        "status": plain(result.status) if result else None,
        "model": plain(facts.model),
        "num_prompt_tokens": plain(result.num_prompt_tokens) if result else None,
        "num_completion_tokens": plain(result.num_completion_tokens) if result else None,
        "duration_ms": None,
        "reason": plain(result.reason) if result else None,
    }
    if facts.attempted_name is not None:
        record["attempted_name_hmac"] = pseudonyms.of("name", facts.attempted_name)
    if result and result.content is not None:
        record["content_hmac"] = pseudonyms.of("content", result.content)
    if result and result.details:
        record["details"] = plain(result.details)
    return record


def plain(value: object) -> Any:
    """Convert a value to what canonical JSON can hold; integers out of range and other types become text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) <= MAX_INTEGER:
        return int(value)
    if isinstance(value, Mapping):
        return {str(plain(str(name))): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)]
    return str(value)[:MAX_TEXT].encode("utf-8", "replace").decode()
