"""Records: canonical JSON, times, keyed hashes."""

from __future__ import annotations

import json

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from chatsvc.audit.facts import Facts, Result
from chatsvc.audit.format.record import (
    MAX_INTEGER,
    Pseudonyms,
    RecordInvalid,
    compute_mac,
    decode,
    describe,
    encode,
    format_time,
    mac_fits,
    parse_time,
    plain,
    seal,
)

PSEUDONYMS = Pseudonyms(b"k" * 32)
texts = st.text(st.characters(exclude_categories=["Cs"]))
scalars = st.none() | st.booleans() | st.integers(-MAX_INTEGER, MAX_INTEGER) | texts
free = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)
names = st.sampled_from(["actor", "address", "seq", "ts", "v", "reason", "mac", "content", "epoch"])


@given(st.dictionaries(names, scalars))
def test_the_fast_encoder_agrees_with_rfc_8785(record):
    assert encode(record) == rfc8785.dumps(record)
    assert decode(encode(record)) == record


@given(free)
def test_free_form_objects_are_rfc_8785_too(details):
    record = {"details": details, "seq": 1}
    assert encode(record) == rfc8785.dumps(record)
    assert decode(encode(record)) == record


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"1",
        b'{"a":1',
        b'{"a": 1}',
        b'{"b":1,"a":1}',
        b'{"a":1,"a":1}',
        b'{"a":1.0}',
        b'{"a":1e2}',
        b'{"a":"\\u0041"}',
        b'{"a":"\\/"}',
        b'{"a":"\xff"}',
        b'{"a":NaN}',
        b'{"details":{"x":9007199254740993}}',
        b'{"a":1}\r',
        b"[" * 100_000,
        b'{"a":"\\ud800"}',
    ],
)
def test_what_is_not_canonical_is_no_record(line):
    with pytest.raises(RecordInvalid):
        decode(line)


def test_a_fraction_is_never_in_a_record():
    assert plain({"x": 0.5}) == {"x": "0.5"}
    with pytest.raises(RecordInvalid):
        decode(b'{"details":{"x":0.5}}')


@given(st.integers(0, 4_102_444_800_000_000))
def test_times_come_back(microseconds):
    text = format_time(microseconds)
    assert parse_time(text) == microseconds
    assert len(text) == 27


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-11-22",
        "2026-11-22T12:00:00Z",
        "2026-11-22T12:00:00.000000+00:00",
        "2026-11-22T13:00:00.000000",
        None,
        5,
    ],
)
def test_another_form_of_a_time_is_refused(text):
    with pytest.raises(RecordInvalid):
        parse_time(text)


def test_the_mac_covers_everything_but_itself():
    record = {"a": 1, "b": "x"}
    line = seal(record, b"key")
    assert decode(line)["mac"] == compute_mac(decode(line), b"key") == compute_mac(record, b"key")
    assert compute_mac(record | {"b": "y"}, b"key") != compute_mac(record, b"key")


@given(st.dictionaries(names, scalars), free)
def test_the_mac_of_a_line_is_the_mac_of_its_record(record, details):
    line = seal({"method": None, **record, "details": details}, b"key")
    assert mac_fits(line, decode(line)["mac"], b"key")
    assert not mac_fits(line, decode(line)["mac"], b"other")
    assert not mac_fits(line, "0" * 64, b"key")


def test_names_token_ids_and_contents_are_only_keyed_hashes():
    facts = Facts("r", "auth.login", attempted_name="bob", jti="token-1")
    record = describe("event", facts, Result("denied", content="my question"), PSEUDONYMS)
    text = json.dumps(record)
    assert not any(secret in text for secret in ("bob", "token-1", "my question"))
    assert record["attempted_name_hmac"] == PSEUDONYMS.of("name", "bob")
    assert PSEUDONYMS.of("name", "bob") != Pseudonyms(b"other").of("name", "bob")
    assert PSEUDONYMS.of("name", "bob") != PSEUDONYMS.of("jti", "bob")
    assert PSEUDONYMS.of("name", "\ud800")


def test_every_field_of_the_format_is_there_and_null_when_unknown():
    record = describe("begin", Facts("", "chat.generate"), None, PSEUDONYMS)
    assert record["request_id"] is None
    assert {"actor", "sid", "jti_hmac", "address", "method", "route", "status", "model", "outcome", "reason"} <= set(
        record
    )
    assert {"num_prompt_tokens", "num_completion_tokens", "duration_ms"} <= set(record)
    assert "details" not in record


def test_details_of_any_kind_become_something_that_json_can_hold():
    class Odd:
        def __str__(self) -> str:
            return "odd \ud800"

    given_details = {"a": (1, 2), 3: {"b", "a"}, "odd": Odd(), "big": 2**60, "no": None, "yes": True}
    assert plain(given_details) == {
        "a": [1, 2],
        "3": ["a", "b"],
        "odd": "odd ?",
        "big": str(2**60),
        "no": None,
        "yes": True,
    }
