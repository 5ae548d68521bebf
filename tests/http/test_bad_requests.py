"""Malformed requests: each gets the contract's 4xx in its shape with the right ``param``, and the service goes on."""

from __future__ import annotations

import io
import json
import time
from functools import partial

import pytest

from chatsvc.http.wire.schema import max_chat_bytes

JSON = "application/json"
Q = {"query": "Hi"}
M = {"messages": [{"role": "user", "content": "Hi"}]}


def body(**fields):
    return json.dumps({**Q, **fields}).encode()


def schema_format(schema, **more):
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, **more}}


def v1(**fields):
    return json.dumps({**M, **fields}).encode()


def message(**fields):
    return json.dumps({"messages": [fields]}).encode()


NOT_JSON = [
    b"",
    b" ",
    b"{",
    b"}",
    b"hello",
    b"'query'",
    b'{"query":"x"',
    b'{"query":"x",}',
    b'{"query":"x"} {"query":"y"}',
    b'{query:"x"}',
    b'{"query":"x" /* comment */}',
    b'{"query":"\x01"}',
    b'{"query":"\\x41"}',
    b'{"query":"\\ud83"}',
    b'{"max_tokens":01}',
    b'{"max_tokens":+1}',
    b'{"max_tokens":.5}',
    b'{"max_tokens":0x10}',
    b"[]",
    b'["query"]',
    b'"query"',
    b"1",
    b"null",
    b"true",
    b"NaN",
    b"\xef\xbb\xbf" + body(),
    body().decode().encode("utf-16"),
    body().decode().encode("utf-16-le"),
    body().decode().encode("utf-32"),
    b'{"query":"\xff"}',
    b'{"query":"\xc0\xaf"}',
    b'{"query":"\xed\xa0\x80"}',
    b"[" * 60_000,
    b'{"a":' * 10_000,
    b'{"max_tokens":' + b"9" * 5000 + b"}",
]

CHAT = [
    ("query", b'{"query":"x","query":"y"}'),
    ("role", b'{"messages":[{"role":"user","role":"system","content":"x"}]}'),
    ("temperature", b'{"query":"x","temperature":NaN}'),
    ("temperature", b'{"query":"x","temperature":Infinity}'),
    ("temperature", b'{"query":"x","temperature":-Infinity}'),
    ("temperature", b'{"query":"x","temperature":1e999}'),
    ("stop", b'{"query":"x","stop":[NaN]}'),
    ("surprise", body(surprise=1)),
    ("Query", b'{"Query":"x"}'),
    ("mesages", b'{"mesages":[]}'),
    ("name", message(role="user", content="x", name="y")),
    ("query", b"{}"),
    ("query", b'{"query":null}'),
    ("query", b'{"query":""}'),
    ("query", b'{"query":1}'),
    ("query", b'{"query":["x"]}'),
    ("query", b'{"query":"a\\u0000b"}'),
    ("query", b'{"query":"\\ud800"}'),
    ("messages", json.dumps({**Q, **M}).encode()),
    ("messages", b'{"messages":[]}'),
    ("messages", b'{"messages":"x"}'),
    ("messages", b'{"messages":{}}'),
    ("messages[0]", b'{"messages":["x"]}'),
    ("messages[0]", b'{"messages":[null]}'),
    ("messages[0].role", message(content="x")),
    ("messages[0].role", message(role="robot", content="x")),
    ("messages[0].role", message(role="User", content="x")),
    ("messages[0].role", message(role="tool", content="x")),
    ("messages[0].role", message(role=None, content="x")),
    ("messages[0].content", message(role="user")),
    ("messages[0].content", message(role="user", content=1)),
    ("messages[0].content", message(role="user", content=None)),
    ("messages[0].content", message(role="user", content="\0")),
    ("messages[0].content", b'{"messages":[{"role":"user","content":"\\udfff"}]}'),
    ("messages[1].role", b'{"messages":[{"role":"user","content":"x"},{"role":"x","content":"x"}]}'),
    ("system", body(system=1)),
    ("system", body(system="\0")),
    ("conversation_id", body(conversation_id=7)),
    ("conversation_id", body(conversation_id="")),
    ("conversation_id", body(conversation_id="../../etc/passwd")),
    ("conversation_id", body(conversation_id="x" * 65)),
    ("conversation_id", body(conversation_id="abc\n")),
    ("max_tokens", body(max_tokens=0)),
    ("max_tokens", body(max_tokens=-1)),
    ("max_tokens", body(max_tokens=4097)),
    ("max_tokens", body(max_tokens=1.5)),
    ("max_tokens", body(max_tokens="5")),
    ("max_tokens", body(max_tokens=True)),
    ("max_tokens", body(max_tokens=10**30)),
    ("max_tokens", body(max_tokens=[1])),
    ("temperature", body(temperature=-0.1)),
    ("temperature", body(temperature=2.1)),
    ("temperature", body(temperature="1")),
    ("temperature", body(temperature=True)),
    ("temperature", body(temperature=10**30)),
    ("top_p", body(top_p=0)),
    ("top_p", body(top_p=1.01)),
    ("top_p", body(top_p=-1)),
    ("top_p", body(top_p=[])),
    ("seed", body(seed=2**63)),
    ("seed", body(seed=-(2**63) - 1)),
    ("seed", body(seed=1.5)),
    ("seed", body(seed="1")),
    ("stop", body(stop=[])),
    ("stop", body(stop="")),
    ("stop[0]", body(stop=[""])),
    ("stop", body(stop=list("abcde"))),
    ("stop[1]", body(stop=["a", 1])),
    ("stop[0]", body(stop=["\0"])),
    ("stop", body(stop={})),
    ("stream", body(stream=True)),
    ("model", body(model="x")),
    ("n", body(n=1)),
]

OPENAI = [
    ("messages", b"{}"),
    ("messages", v1(messages=None)),
    ("n", v1(n=17)),
    ("n", v1(n=0)),
    ("n", v1(n="1")),
    ("n", v1(n=True)),
    ("n", v1(n=1.5)),
    ("tool_choice", v1(tools=[{"type": "function", "function": {"name": "f"}}], tool_choice="required")),
    ("tool_choice", v1(tool_choice={"type": "function", "function": {"name": "f"}})),
    ("function_call", v1(functions=[{"name": "f"}], function_call={"name": "f"})),
    ("logprobs", v1(logprobs=1)),
    ("top_logprobs", v1(top_logprobs=3)),
    ("logit_bias", v1(logit_bias={"50256": -101})),
    ("logit_bias", v1(logit_bias={"word": 1})),
    ("response_format", v1(response_format={"type": "grammar"})),
    ("response_format", v1(response_format={"type": "json_object"}, ignore_eos=True)),
    ("response_format", v1(response_format={"type": "json_object"}, min_tokens=5)),
    ("response_format", v1(response_format={"type": "json_schema", "json_schema": {"schema": {}}})),
    ("response_format", v1(response_format=schema_format({}, strict="yes"))),
    ("response_format", v1(response_format=schema_format([]))),
    ("response_format", v1(response_format=schema_format({"const": "x" * 40_000}))),
    ("response_format", v1(response_format={"type": "json_schema", "json_schema": {}})),
    ("response_format", v1(response_format="text")),
    ("guided_json", v1(guided_json={"type": "object"})),
    ("structured_outputs", v1(structured_outputs={"regex": "x"})),
    ("grammar", v1(grammar="root ::= x")),
    ("modalities", v1(modalities=["audio"])),
    ("modalities", v1(modalities=["text", "audio"], audio={"voice": "alloy"})),
    ("stream", v1(stream="yes")),
    ("stream_options", v1(stream=True, stream_options=True)),
    ("stream_options.include_usage", v1(stream=True, stream_options={"include_usage": "yes"})),
    ("max_completion_tokens", v1(max_completion_tokens=-1)),
    ("max_completion_tokens", v1(max_completion_tokens=5000)),
    ("presence_penalty", v1(presence_penalty=2.5)),
    ("frequency_penalty", v1(frequency_penalty=-2.5)),
    ("stop", v1(stop=["a", "b", "c", "d", "e"])),
    ("messages[0].role", message(role="critic", content="x")),
    ("messages[0].role", message(content="x")),
    ("messages[0].content", message(role="user")),
    ("messages[0].content", message(role="user", content=None)),
    ("messages[0].content", message(role="user", content=[])),
    ("messages[0].content", message(role="tool", tool_call_id="y")),
    ("messages[0].tool_calls", message(role="user", content="x", tool_calls=[])),
    ("messages[0].tool_calls[0].function", message(role="assistant", content="x", tool_calls=[{"id": "x"}])),
    # of many wrong items only the first is looked at: a long body holds hundreds of thousands
    ("messages[0].tool_calls[0].function", message(role="assistant", tool_calls=[{}] * 500)),
    ("messages[0].content[0].type", message(role="user", content=[{}] * 500)),
    ("messages[0]", v1(messages=[1] * 500)),
    ("logit_bias", v1(logit_bias={str(number): "x" for number in range(1025)})),
    (
        "messages[0].tool_calls[0].function.arguments",
        message(role="assistant", tool_calls=[{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]),
    ),
    (
        "messages[0].tool_calls[0].custom.name",
        message(role="assistant", tool_calls=[{"type": "custom", "custom": {"input": "x"}}]),
    ),
    ("messages[0].tool_calls[0].type", message(role="assistant", tool_calls=[{"type": "odd", "function": {}}])),
    ("messages[0].tool_calls[0]", message(role="assistant", tool_calls=["x"])),
    ("messages[0].audio", message(role="assistant", audio={"id": "x"})),
    ("messages[0].content[0].text", message(role="user", content=[{"type": "text"}])),
    ("messages[0].content[0].type", message(role="user", content=[{"type": "input_audio", "text": ""}])),
    ("messages[0].content[0].type", message(role="user", content=[{"type": "image_url", "image_url": {"url": "x"}}])),
    ("messages[0].content[0].type", message(role="user", content=[{"type": "odd", "text": "x"}])),
    ("messages[0].content[0].type", message(role="user", content=[{"text": "x"}])),
    ("seed", v1(seed=2**64)),
    ("model", v1(model=7)),
]


@pytest.fixture
def headers(bare_client, login):
    return login("alice", at=bare_client)


def assert_refused(answer, status, kind="invalid_request_error"):
    assert answer.status_code == status, answer.get_data()[:300]
    assert answer.mimetype == JSON
    error = answer.json["error"]
    assert set(answer.json) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == kind
    assert error["message"]
    assert answer.headers["X-Request-Id"]
    return error


def differences(client, headers, route, cases):
    """Every case whose answer is not 400 with that param."""
    found = []
    for param, data in cases:
        answer = client.post(route, data=data, headers=headers, content_type=JSON)
        if answer.status_code != 400 or assert_refused(answer, 400)["param"] != param:
            found.append((param, data[:100], answer.status_code, answer.json))
    return found


@pytest.mark.parametrize("route", ["/chat", "/chat/stream", "/v1/chat/completions"])
def test_what_is_not_json_is_400_without_a_param(bare_client, headers, route):
    assert differences(bare_client, headers, route, [(None, data) for data in NOT_JSON]) == []


@pytest.mark.parametrize("route", ["/chat", "/chat/stream"])
def test_bad_chat_bodies_are_400_and_the_param_names_what_is_wrong(bare_client, headers, route):
    assert differences(bare_client, headers, route, CHAT) == []


def test_bad_openai_bodies_are_400_and_the_param_names_what_is_wrong(bare_client, headers):
    assert differences(bare_client, headers, "/v1/chat/completions", OPENAI) == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (v1(stop=""), "stop: must not be empty."),
        (v1(messages=[]), "messages: must not be empty."),
        (message(role="user", content=["x"]), "messages[0].content[0]: Input should be an object."),
    ],
)
def test_a_message_says_what_is_wrong_with_the_value_that_was_meant(bare_client, headers, body, message):
    answer = bare_client.post("/v1/chat/completions", data=body, headers=headers, content_type=JSON)
    assert assert_refused(answer, 400)["message"] == message


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/plain",
        "text/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "application/json; charset=utf-16",
        "application/json; charset=latin-1",
        "application/json; boundary=x",
        "application/jsonx",
        "application/ld+json",
    ],
)
def test_another_media_type_is_415(bare_client, headers, content_type):
    answer = bare_client.post("/chat", data=body(), headers=headers, content_type=content_type)
    assert_refused(answer, 415)


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"'])
def test_the_charset_may_be_said(bare_client, headers, content_type):
    answer = bare_client.post("/chat", data=body(), headers=headers, content_type=content_type)
    assert answer.status_code == 503  # read, and refused only because there is no model


def test_an_encoded_body_is_415(bare_client, headers):
    answer = bare_client.post("/chat", data=body(), headers={**headers, "Content-Encoding": "gzip"}, content_type=JSON)
    assert_refused(answer, 415)


def test_a_whole_number_may_be_written_with_a_point(bare_client, headers):
    # JSON has one kind of number, and JSON Schema calls 1.0 an integer; 503: it was read, and there is no model.
    for route, data in (("/v1/chat/completions", v1(n=1.0, max_tokens=2.0)), ("/chat", body(max_tokens=2.0, seed=1e3))):
        assert bare_client.post(route, data=data, headers=headers, content_type=JSON).status_code == 503


def send(client, headers, route, size, *, chunked):
    """A body of so many bytes, with a Content-Length or in chunks."""
    data = json.dumps({"query": "x" * (size - len(json.dumps({"query": ""})))}).encode()
    assert len(data) == size
    post = partial(client.post, route, headers=headers, content_type=JSON)
    if not chunked:
        return post(data=data)

    environ = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    return post(input_stream=io.BytesIO(data), environ_overrides=environ)


def test_a_body_of_the_limit_is_read_and_one_byte_more_is_413(make_app, login):
    client = make_app(with_model=False, CHATSVC_SERVER__MAX_BODY_BYTES="70000").test_client()
    for chunked in (False, True):
        sent = partial(send, client, login("alice", at=client), "/chat", chunked=chunked)
        assert sent(70_000).status_code == 503
        assert_refused(sent(70_001), 413)
        assert_refused(sent(200_000), 413)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_chat_may_fill_the_context_with_escaped_text_and_nothing_else_may_be_so_long(bare_client, headers, chunked):
    sent = partial(send, bare_client, headers, chunked=chunked)
    most = max_chat_bytes(32_768)  # what is assumed while no model is there
    assert most > 32_768 * 6 * 5
    for route in ("/chat", "/chat/stream"):
        assert sent(route, most).status_code == 503
        assert_refused(sent(route, most + 1), 413)
    assert_refused(sent("/password", 65_536), 400)
    assert_refused(sent("/password", 65_537), 413)


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "99999999999999999999"])
def test_an_absurd_content_length_is_4xx(bare_client, headers, length):
    answer = bare_client.post(
        "/chat", headers=headers, content_type=JSON, environ_overrides={"CONTENT_LENGTH": length}, input_stream=None
    )
    assert 400 <= answer.status_code < 500
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}


def test_a_client_that_breaks_off_its_body_is_400(bare_client, headers):

    answer = bare_client.post(
        "/chat",
        headers=headers,
        content_type=JSON,
        input_stream=io.BytesIO(b'{"que'),
        environ_overrides={"CONTENT_LENGTH": "100"},
    )
    assert_refused(answer, 400)


@pytest.mark.parametrize("host", ["", "a,b", "a b", "a/b", "user@host"])
def test_a_bad_host_is_400(bare_client, host):
    assert_refused(bare_client.get("/healthz", environ_overrides={"HTTP_HOST": host}), 400)


def test_the_order_is_address_path_method_token_scope_body(bare_client, headers, login):
    stranger = {"REMOTE_ADDR": "203.0.113.9"}
    nonsense = {"data": b"\xff", "content_type": "text/plain"}
    assert_refused(bare_client.delete("/nowhere", environ_overrides=stranger), 403, "permission_error")
    assert_refused(bare_client.delete("/nowhere"), 404, "not_found_error")
    answer = bare_client.delete("/chat", **nonsense)
    assert_refused(answer, 405)
    assert "POST" in answer.headers["Allow"]
    answer = bare_client.post("/chat", **nonsense)
    assert_refused(answer, 401, "authentication_error")
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert_refused(bare_client.get("/metrics", headers=headers, **nonsense), 403, "permission_error")
    assert_refused(bare_client.post("/chat", headers=headers, **nonsense), 415)


def test_a_message_never_holds_what_was_sent(bare_client, headers):
    canary = "canary-7f3a"
    bodies = [
        body(max_tokens=canary),
        body(temperature=canary),
        b'{"query":"' + canary.encode(),
        body(stop=[canary] * 9),
    ]
    for data in bodies:
        answer = bare_client.post("/chat", data=data, headers=headers, content_type=JSON)
        assert canary not in answer.get_data(as_text=True)


def test_deep_nesting_is_refused_at_once(bare_client, headers):
    started = time.perf_counter()
    for data in (b"[" * 65_000, b'{"a":' * 13_000, b'["' + b"\\" * 60_000 + b'"]'):
        assert_refused(bare_client.post("/chat", data=data, headers=headers, content_type=JSON), 400)
    assert time.perf_counter() - started < 10


def test_the_service_answers_after_all_that(client, login):
    headers = login()
    for data in NOT_JSON[:20]:
        client.post("/chat", data=data, headers=headers, content_type=JSON)
    answer = client.post(
        "/chat", json={"query": "What is the capital of France?", "max_tokens": 16, "temperature": 0}, headers=headers
    )
    assert "Paris" in answer.json["result"]
