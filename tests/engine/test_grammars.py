"""Grammars as they are compiled: what a schema forbids cannot be generated, and what costs too much is refused."""

import itertools
import json
import random
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from tokenizers import Tokenizer

from chatsvc.engine.protocol import MAX_GRAMMAR_BYTES, Grammar
from chatsvc.engine.runners.grammars import Constraint, GrammarRefused, Grammars
from chatsvc.engine.runners.masks import as_rows, is_allowed
from chatsvc.models.card import ModelCard
from chatsvc.models.store import ModelFolder
from tests.engine.filemodel import make_card

Schema = dict[str, Any]
EOS = 2


@pytest.fixture(scope="module")
def card(smollm2: ModelFolder) -> ModelCard:
    return smollm2.card()


@pytest.fixture(scope="module")
def grammars(card: ModelCard) -> Iterator[Grammars]:
    made = Grammars(card)
    yield made
    made.close()


@pytest.fixture(scope="module")
def tokenizer(card: ModelCard) -> Tokenizer:
    return Tokenizer.from_buffer(card.tokenizer_json)


def compiled(grammars: Grammars, schema: object, kind: str = "json_schema") -> Constraint:
    text = schema if isinstance(schema, str) else json.dumps(schema)
    return grammars.compile(Grammar(kind, text)).result(60)  # type: ignore[arg-type]


def allowed_ids(constraint: Constraint) -> list[int]:
    mask = constraint.masks([])[0]
    return np.flatnonzero(is_allowed(mask, len(mask) * 32)).tolist()


def admits(constraint: Constraint, ids: list[int]) -> bool:
    """Whether the ids can be generated one after the other, and the text may end there."""
    for id_ in ids:
        if id_ not in allowed_ids(constraint):
            return False
        constraint.advance(id_)
    return EOS in allowed_ids(constraint)


PERSON: Schema = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 1}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}
# keyword -> schema, instances that it allows, instances that it forbids
CASES: dict[str, tuple[Schema, list[Any], list[Any]]] = {
    "type": ({"type": "integer"}, [0, -3, 10**20], ["1", 1.5, None, True, [], {}]),
    "types": ({"type": ["string", "null"]}, ["", "a", None], [1, False, [], {}]),
    "boolean": ({"type": "boolean"}, [True, False], [0, "true", None]),
    "enum": ({"enum": ["a", 1, None, {"b": [2]}]}, ["a", 1, None, {"b": [2]}], ["b", 2, False, {"b": [3]}, {}]),
    "const": ({"const": {"a": [1, "x"]}}, [{"a": [1, "x"]}], [{"a": [1, "y"]}, {}, "x"]),
    "minimum": ({"type": "integer", "minimum": -5}, [-5, 0, 999], [-6, -100]),
    "maximum": ({"type": "number", "maximum": 10.5}, [10.5, 10, -99.25], [10.6, 11, 1000]),
    "exclusiveMinimum": ({"type": "integer", "exclusiveMinimum": 3}, [4, 30], [3, 2, -4]),
    "exclusiveMaximum": ({"type": "number", "exclusiveMaximum": 3}, [2.999, 0], [3, 3.5, 30]),
    "multipleOf": ({"type": "integer", "multipleOf": 7, "minimum": 0}, [0, 7, 14, 70], [1, 8, 15, 71]),
    "minLength": ({"type": "string", "minLength": 3}, ["abc", "ééé", "four"], ["", "ab", "éé"]),
    "maxLength": ({"type": "string", "maxLength": 3}, ["", "abc", "日本語"], ["abcd", "日本語文"]),
    "pattern": ({"type": "string", "pattern": "^[A-Z]{2}-[0-9]+$"}, ["AB-1", "ZZ-0042"], ["A-1", "AB-", "xAB-1", "AB-1x"]),
    "pattern, not anchored": ({"type": "string", "pattern": "b+c"}, ["bc", "xxbbcx"], ["", "b", "cb"]),
    "format": ({"type": "string", "format": "date"}, ["2026-11-27"], ["2026-11", "27.11.2026", "2026-13-01"]),
    "items": ({"type": "array", "items": {"type": "integer"}}, [[], [1, 2]], [["a"], [1, None], {}]),
    "prefixItems": (
        {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False},
        [["a", 1], ["a"]],
        [[1], ["a", "b"], ["a", 1, 2]],
    ),
    "minItems": ({"type": "array", "minItems": 2, "items": {"type": "integer"}}, [[1, 2], [1, 2, 3]], [[], [1]]),
    "maxItems": ({"type": "array", "maxItems": 2, "items": {"type": "integer"}}, [[], [1, 2]], [[1, 2, 3]]),
    "properties": (PERSON, [{"name": "Bo"}, {"name": "Bo", "age": 3}], [{"name": 3}, {"name": "Bo", "age": -1}]),
    "required": (PERSON, [{"name": "Bo"}], [{}, {"age": 3}]),
    "additionalProperties": (PERSON, [{"name": "Bo"}], [{"name": "Bo", "more": 1}, {"name": ""}]),
    "additionalProperties, a schema": (
        {"type": "object", "additionalProperties": {"type": "integer"}},
        [{}, {"a": 1, "b": 2}],
        [{"a": "1"}, {"a": 1, "b": None}],
    ),
    "patternProperties": (
        {"type": "object", "patternProperties": {"^n_": {"type": "integer"}}, "additionalProperties": False},
        [{}, {"n_a": 1}],
        [{"n_a": "1"}, {"a": 1}],
    ),
    "minProperties": ({"type": "object", "minProperties": 1}, [{"a": 1}], [{}]),
    "maxProperties": ({"type": "object", "maxProperties": 1}, [{}, {"a": 1}], [{"a": 1, "b": 2}]),
    "anyOf": ({"anyOf": [{"type": "integer", "minimum": 5}, {"type": "null"}]}, [5, None], [4, "5", []]),
    "allOf": (
        {"allOf": [{"type": "integer", "minimum": 3}, {"type": "integer", "maximum": 6}]}, [3, 6], [2, 7, "4"],
    ),
    "oneOf": ({"oneOf": [{"type": "integer"}, {"type": "string", "maxLength": 1}]}, [3, "a"], ["ab", None, []]),
    "$ref": (
        {"$ref": "#/$defs/list", "$defs": {"list": {"type": "array", "items": {"$ref": "#/$defs/list"}}}},
        [[], [[], [[]]]],
        [[1], {}, None],
    ),
    "a nested object": (
        {"type": "object", "properties": {"who": PERSON}, "required": ["who"], "additionalProperties": False},
        [{"who": {"name": "Bo"}}],
        [{"who": {}}, {"who": {"name": "Bo", "x": 1}}, {}],
    ),
    "true and false": (
        {"type": "object", "properties": {"a": True, "b": False}, "additionalProperties": False}, [{}, {"a": 1}], [{"b": 1}],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_a_schema_allows_can_be_generated_and_what_it_forbids_cannot(
    grammars: Grammars, tokenizer: Tokenizer, name: str
) -> None:
    schema, valid, invalid = CASES[name]
    is_valid = jsonschema_rs.validator_for(schema, validate_formats=True).is_valid
    for instance, expected in [*((one, True) for one in valid), *((one, False) for one in invalid)]:
        assert is_valid(instance) is expected, instance  # another implementation of JSON Schema agrees with the case
        for ascii_only in (True, False):
            ids = tokenizer.encode(json.dumps(instance, ensure_ascii=ascii_only), add_special_tokens=False).ids
            found = admits(compiled(grammars, schema), ids)
            assert found is expected or (expected and ascii_only and "\\u" in json.dumps(instance)), instance


@pytest.mark.parametrize("name", CASES)
def test_whatever_is_generated_is_what_the_schema_allows(grammars: Grammars, tokenizer: Tokenizer, name: str) -> None:
    schema = CASES[name][0]
    is_valid = jsonschema_rs.validator_for(schema, validate_formats=True).is_valid
    ending = {EOS, *tokenizer.encode('"}]bc0', add_special_tokens=False).ids, *map(tokenizer.token_to_id, '"}]bc0')}
    num_ended = 0
    for seed in range(12):
        chosen, constraint = random.Random(seed), compiled(grammars, schema)
        ids: list[int] = []
        while len(ids) < 120:
            allowed = allowed_ids(constraint)
            assert allowed, (constraint.failure, tokenizer.decode(ids))
            likely = sorted(ending.intersection(allowed))
            id_ = chosen.choice(likely if likely and chosen.random() < 0.5 else allowed)
            if id_ in (0, EOS):
                num_ended += 1
                assert is_valid(json.loads(tokenizer.decode(ids))), tokenizer.decode(ids)
                break
            ids.append(id_)
            constraint.advance(id_)
    assert num_ended > 0


KEYWORDS = {
    "not": {"type": "null"}, "if": {"type": "string"}, "then": {}, "else": {}, "contains": {"type": "null"}, "minContains": 1,
    "maxContains": 1, "uniqueItems": True, "propertyNames": {"maxLength": 1}, "dependentRequired": {"a": ["b"]},
    "dependentSchemas": {"a": {"required": ["b"]}}, "dependencies": {"a": ["b"]}, "unevaluatedItems": False,
    "unevaluatedProperties": False, "$dynamicRef": "#a", "x-guidance": {"lenient": True},
}  # fmt: skip


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_a_keyword_that_cannot_be_obeyed_is_refused_by_name(grammars: Grammars, keyword: str) -> None:
    with pytest.raises(GrammarRefused, match=f"the schema uses .*{keyword.replace('$', '.')}"):
        compiled(grammars, {"type": "object", keyword: KEYWORDS[keyword]})


def nested(depth: int) -> str:
    return '{"items":' * depth + "{}" + "}" * depth


def chained(num: int, keyword: str) -> Schema:
    """Each definition names the next one twice."""
    names = [f"#/$defs/d{number}" for number in range(num + 1)]
    chain = {f"d{number}": {keyword: [{"$ref": names[number + 1]}] * 2} for number in range(num)}
    return {"$ref": names[0], "$defs": {**chain, f"d{num}": {"type": "null"}}}


# What is refused has a reason here; the others are allowed because they cost little.
HOSTILE: dict[str, tuple[object, str]] = {
    "deep": (nested(300), "recursion"),
    "deeper": (nested(3000), "recursion"),
    "long": ({"const": "x" * MAX_GRAMMAR_BYTES}, "more than 32768 bytes"),
    "the longest constant": ({"const": "x" * (MAX_GRAMMAR_BYTES - 100)}, ""),
    "a long enum": ({"enum": [f"{number * 7919}" for number in range(2500)]}, ""),
    "many properties": ({"properties": {f"{number}": True for number in range(1800)}}, "too big"),
    "huge bounds": ({"type": "string", "minLength": 10**8, "maxLength": 10**9}, ""),
    "huge arrays": ({"type": "array", "minItems": 10**9, "maxItems": 2 * 10**9}, ""),
    "a huge multiple": ({"type": "integer", "multipleOf": 1_000_003}, "common multiple"),
    "multiples in one another": ({"allOf": [{"multipleOf": number} for number in (97, 0.89, 8.3)]}, "common multiple"),
    "an endless multiple": ({"multipleOf": 1e300}, "too many digits"),
    "nested groups": ({"type": "string", "pattern": "(" * 3000 + "a" + ")" * 3000}, "regex parse error"),
    "nested repetitions": ({"type": "string", "pattern": "(((a{1,100}){1,100}){1,100}){1,100}"}, ""),
    "catastrophic elsewhere": ({"type": "string", "pattern": "^(a+)+$"}, ""),
    "patterns in one another": (
        {"allOf": [{"type": "string", "pattern": f".*{one}.{{12}}{one}.*"} for one in "abcdefgh"]},
        "Unable to determine",
    ),
    "look-ahead": ({"type": "string", "pattern": "^a(?=b)"}, "regex parse error"),
    "a reference to itself": ({"$ref": "#"}, "no text obeys it"),
    "a reference that grows": (
        {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {"type": "object"}]}}, "$ref": "#/$defs/a"},
        "circular",
    ),
    "a chain of allOf": (chained(30, "allOf"), ""),
    "a chain of anyOf": (chained(30, "anyOf"), ""),
    "a product of alternatives": (
        {"allOf": [{"anyOf": [{"properties": {f"{i} {j}": {"type": "null"}}} for j in range(6)]} for i in range(12)]},
        "too large",
    ),
    "a reference elsewhere": ({"$ref": "https://example.org/schema"}, "example.org"),
    "no schema": ("[]", "a JSON object"),
    "no JSON": ("{", "cannot be read"),
    "impossible": ({"enum": []}, "Unsatisfiable"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_is_refused_with_its_reason_or_costs_little(grammars: Grammars, name: str) -> None:
    schema, reason = HOSTILE[name]
    if reason:
        with pytest.raises(GrammarRefused, match=reason):
            compiled(grammars, schema)
    else:
        constraint = compiled(grammars, schema)
        for _ in range(20):
            id_ = allowed_ids(constraint)[0]
            if id_ == EOS or id_ == 0:
                break
            constraint.advance(id_)
        assert constraint.failure == ""


def test_a_grammar_that_grows_too_large_fails_and_can_be_used_again(grammars: Grammars) -> None:
    schema = {"type": "string", "pattern": "^(.*a.{50}b.*|.*c.{60}d.*|.*e.{30}f)$"}
    for _ in range(2):  # what failed is not taken from the cache
        constraint, chosen = compiled(grammars, schema), random.Random(1)
        assert allowed_ids(constraint)
        while allowed := allowed_ids(constraint):
            constraint.advance(chosen.choice(allowed))
        assert "too many" in constraint.failure
        assert constraint.forced() == []


def test_regular_expressions_and_grammars_too(grammars: Grammars, tokenizer: Tokenizer) -> None:
    for kind, text in (("regex", "(yes|no), [0-9]{2}"), ("lark", 'start: ("yes" | "no") ", " /[0-9]{2}/')):
        for answer, expected in (("yes, 42", True), ("no, 07", True), ("maybe", False), ("yes, 4", False)):
            ids = tokenizer.encode(answer, add_special_tokens=False).ids
            assert admits(compiled(grammars, text, kind), ids) is expected
        with pytest.raises(GrammarRefused):
            compiled(grammars, "start: (", kind)


def test_guesses_leave_no_trace(grammars: Grammars, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode('{"name": "Bo", "age": 5}', add_special_tokens=False).ids
    plain, guessing = compiled(grammars, PERSON), compiled(grammars, PERSON)
    for place, id_ in enumerate(ids):
        guesses = guessing.passable([*ids[place:], EOS + 3])
        assert guesses[: len(ids) - place] == ids[place:]
        ahead = guessing.masks(ids[place:])
        assert np.array_equal(ahead[0], plain.masks([])[0])
        assert len(ahead) == len(ids) - place + 1
        plain.advance(id_)
        guessing.advance(id_)
        if place + 1 < len(ids):
            assert np.array_equal(ahead[1], plain.masks([])[0])
    assert tokenizer.decode(compiled(grammars, PERSON).forced()).startswith('{"name')


def test_a_tokenizer_that_cannot_be_read_refuses_every_grammar() -> None:
    grammars = Grammars(make_card("none"))
    try:
        with pytest.raises(GrammarRefused, match="this model's tokenizer"):
            compiled(grammars, {})
    finally:
        grammars.close()


@pytest.mark.parametrize("num_ids", [31, 32, 33, 64, 100])
def test_a_mask_is_cut_or_filled_to_the_models_vocabulary(num_ids: int) -> None:
    full = np.full(2, 0xFFFFFFFF, dtype=np.uint32)
    which, rows = as_rows([None, full, None, full[:1]], num_ids)
    assert which.tolist() == [-1, 0, -1, 1]
    assert rows.shape == (2, -(-num_ids // 32))
    assert is_allowed(full, num_ids).tolist() == [number < 64 for number in range(num_ids)]
    bits = list(itertools.chain.from_iterable(f"{word:032b}"[::-1] for word in rows[0].tolist()))
    assert bits.count("1") == min(64, num_ids)
