"""The OpenAPI document: complete, with a schema and an example for everything, and true."""

from __future__ import annotations

import json
import re

import pytest

from chatsvc.guard.principal import PUBLIC
from chatsvc.http.description.examples import NoExample, example_of
from chatsvc.http.wire.routing import requires

METHODS = {"get", "post", "put", "patch", "delete"}


@pytest.fixture
def held(bare_app):
    return bare_app.extensions["held"]


@pytest.fixture
def operations(held):
    return [
        (f"{method} {path}", operation)
        for path, item in held.document["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    ]


def contents(held, operation):
    """Every content of a request or an answer of its own: ``where``, media type, content."""
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        yield "request", kind, content
    for status, answer in operation["responses"].items():
        if "$ref" not in answer:
            for kind, content in answer.get("content", {}).items():
                yield status, kind, content


def test_every_example_of_a_request_or_an_answer_holds_to_its_schema(held, operations):
    num_seen = 0
    for name, operation in operations:
        for where, kind, content in contents(held, operation):
            if kind != "text/event-stream":
                assert [
                    error.message for error in held.validator(content["schema"]).iter_errors(content["example"])
                ] == [], (
                    name,
                    where,
                )
                num_seen += 1
        for parameter in operation.get("parameters", []):
            if "example" in parameter:
                assert held.validator(parameter["schema"]).is_valid(parameter["example"]), (name, parameter)
            else:
                assert not parameter["required"], (name, parameter)
    assert num_seen > 50


def test_every_example_of_a_stream_is_events_of_its_schema(held, operations):
    streams = [
        (name, content)
        for name, operation in operations
        for _, kind, content in contents(held, operation)
        if kind == "text/event-stream"
    ]
    assert len(streams) == 3
    for name, content in streams:
        *events, end = content["example"].split("\n\n")
        assert end == ""
        for event in events:
            fields = dict(line.split(": ", 1) for line in event.splitlines())
            assert held.validator(content["schema"]).is_valid(fields), (name, event)
            assert fields["data"] == "[DONE]" or json.loads(fields["data"]), (name, event)


def test_every_operation_has_an_answer_with_a_schema_of_its_own(held, operations):
    for name, operation in operations:
        answers = {status: answer for status, answer in operation["responses"].items() if status < "400"}
        assert len(answers) == 1, name
        (status, answer), *_ = answers.items()
        assert ("content" in answer) == (status not in {"204", "302"}), name
        schema = answer.get("content", {}).get("application/json", {}).get("schema")
        if schema is not None:
            component = held.document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
            assert component["properties"], name
            assert component["additionalProperties"] is False, name


def test_every_operation_says_what_it_does(operations):
    summaries = [operation["summary"] for _, operation in operations]
    assert all(len(summary) > 8 and not summary.endswith(".") for summary in summaries)
    doubled = {summary for summary in summaries if summaries.count(summary) > 1}
    assert doubled == {next(operation["summary"] for name, operation in operations if name == "get /healthz")}


def test_no_description_shows_markup_of_docstrings(held):
    assert not re.search(r"``|:mod:|:class:|:func:", json.dumps(held.document))


def test_a_schema_without_an_example_is_named():
    with pytest.raises(NoExample, match="Thing"):
        example_of({"$ref": "#/components/schemas/Thing"}, {"Thing": {"type": "string"}})


def test_an_answer_that_the_document_does_not_allow_is_found(bare_app, held, bare_client):
    assert bare_client.get("/livez").json == {"status": "ok"}
    assert held.findings == []
    bare_app.view_functions["ops.livez"] = requires(PUBLIC)(lambda: {"status": "perhaps"})
    assert bare_client.get("/livez").json == {"status": "perhaps"}
    assert [finding for finding in held.findings if "ops_livez 200" in finding]
    held.findings.clear()
