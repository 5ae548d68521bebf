"""Requests as the clients of others send them, against the real service and model: each is answered, whole and streamed.

The bodies have the fields and the order of what was recorded from the client that is named; docs/how-to/clients.md has their versions.
"""

from __future__ import annotations

import httpx
import pytest

pytestmark = pytest.mark.engine

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hi"}]
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "default": None}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
TOOLS = [{"type": "function", "function": {**WEATHER, "strict": True}}]
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
ANSWER_OF_TOOL = {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}

# client -> (route, body, what the answer says was ignored)
SENT = {
    "openai-python, every field of its own tests": (
        CHAT,
        {
            "messages": [{"content": "string", "role": "developer", "name": "name"}],
            "audio": {"format": "wav", "voice": "alloy"},
            "frequency_penalty": -2,
            "function_call": "none",
            "functions": [WEATHER],
            "logit_bias": {"foo": 0},
            "logprobs": True,
            "max_completion_tokens": 0,
            "max_tokens": 0,
            "metadata": {"foo": "string"},
            "modalities": ["text"],
            "moderation": {"model": "model", "policy": {"input": {"mode": "score"}, "output": {"mode": "score"}}},
            "n": 1,
            "parallel_tool_calls": True,
            "prediction": {"content": "string", "type": "content"},
            "presence_penalty": -2,
            "prompt_cache_key": "prompt-cache-key-1234",
            "prompt_cache_options": {"mode": "implicit", "ttl": "30m"},
            "prompt_cache_retention": "in_memory",
            "reasoning_effort": "none",
            "response_format": {"type": "text"},
            "safety_identifier": "safety-identifier-1234",
            "seed": -9007199254740991,
            "service_tier": "auto",
            "stop": "\n",
            "store": True,
            "stream_options": {"include_obfuscation": True, "include_usage": True},
            "temperature": 1,
            "tool_choice": "none",
            "tools": TOOLS,
            "top_logprobs": 0,
            "top_p": 1,
            "user": "user-1234",
            "verbosity": "low",
            "web_search_options": {"search_context_size": "low"},
        },
        """audio functions messages.name metadata moderation parallel_tool_calls prediction prompt_cache_key
        prompt_cache_options prompt_cache_retention reasoning_effort safety_identifier service_tier store
        stream_options.include_obfuscation tools user verbosity web_search_options""",
    ),
    "langchain-openai, a model that is left its defaults": (
        CHAT,
        {"messages": [{"content": "hello", "name": "example_user", "role": "user"}], "max_completion_tokens": 64, "stop": ["you"]},
        "messages.name",
    ),
    "openai-agents": (
        CHAT,
        {"messages": [{"content": "Be brief", "role": "system"}, *HELLO], "max_tokens": 24, "tools": TOOLS},
        "tools",
    ),
    "pydantic-ai": (
        CHAT,
        {"messages": HELLO, "max_completion_tokens": 24, "tool_choice": "auto", "tools": TOOLS},
        "tools",
    ),
    "AI SDK, a conversation that had tools elsewhere": (
        CHAT,
        {
            "user": "u",
            "max_tokens": 16,
            "temperature": 0.3,
            "top_p": 0.9,
            "frequency_penalty": 0.1,
            "presence_penalty": 0.1,
            "stop": ["###"],
            "seed": 7,
            "reasoning_effort": "low",
            "messages": [
                *HELLO,
                {"role": "assistant", "content": "x", "tool_calls": [CALL]},
                ANSWER_OF_TOOL,
                {"role": "user", "content": "go on"},
            ],
        },
        "reasoning_effort user",
    ),
    "openai-python, messages of answers sent back as they came": (
        CHAT,
        {
            "messages": [
                *HELLO,
                {
                    "id": "msg_1",
                    "role": "assistant",
                    "content": None,
                    "refusal": "I must not.",
                    "annotations": [],
                    "audio": None,
                    "function_call": None,
                    "tool_calls": None,
                    "reasoning_content": "The user greets.",
                },
                {"role": "user", "content": [{"type": "text", "text": "And", "cache_control": {"type": "ephemeral"}}]},
                {"role": "assistant", "content": None, "tool_calls": [{**CALL, "index": 0}]},
                {**ANSWER_OF_TOOL, "content": [{"type": "text", "text": "sunny"}]},
                {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}], "function_call": None},
                {"role": "assistant", "content": "", "function_call": {"name": "get_weather", "arguments": "{}"}},
                {"role": "function", "name": "get_weather", "content": "rain"},
                {"role": "user", "content": [{"type": "input_text", "text": "Well?"}]},
            ],
        },
        "messages.annotations messages.content.cache_control messages.id messages.reasoning_content messages.tool_calls.index",
    ),
    "everything left out by null": (
        CHAT,
        {
            "messages": [{"role": "user", "content": "Hi", "name": None, "tool_calls": None, "refusal": None}],
            **dict.fromkeys(
                ["n", "stop", "tools", "tool_choice", "response_format", "logit_bias", "logprobs", "top_logprobs", "user", "odd"]
            ),
            **dict.fromkeys(["temperature", "top_p", "seed", "stream_options", "functions", "guided_json", "modalities"]),
        },
        "",
    ),
    "Open WebUI, a chat left its defaults": (
        CHAT,
        {
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "tools": [{"type": "function", "function": {**WEATHER, "name": f"tool_{number}"}} for number in range(36)],
        },
        "tools",
    ),
    "Open WebUI, the title of a chat": (
        CHAT,
        {"messages": [{"role": "user", "content": "### Task:\nGenerate a concise title."}], "max_tokens": 24},
        "",
    ),
    "GuideLLM, chat": (
        CHAT,
        {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
            "max_completion_tokens": 8,
            "stop": None,
            "ignore_eos": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        },
        "stream_options.continuous_usage_stats",
    ),
    "GuideLLM, completions": (
        TEXT,
        {
            "prompt": "The capital of France is",
            "max_tokens": 8,
            "stop": None,
            "ignore_eos": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        },
        "stream_options.continuous_usage_stats",
    ),
    "llama-index, OpenAILike left its defaults": (TEXT, {"prompt": "The capital of France is", "max_tokens": 16, "temperature": 0.1}, ""),
    "AI SDK, a completion model": (
        TEXT,
        {"max_tokens": 8, "prompt": "user:\nThe capital of France is\n\nassistant:\n", "stop": ["\nuser:"]},
        "",
    ),
}  # fmt: skip


@pytest.fixture(params=SENT, ids=lambda name: name.replace(" ", "_"))
def sent(request):
    route, body, ignored = SENT[request.param]
    return route, {"max_tokens": 8, **body}, set(ignored.split())


@pytest.fixture
def post(server):
    """``post(route, body)``: what gunicorn answers to alice."""

    def posted(route, body):
        return httpx.post(f"{server.url}{route}", json=body, headers=server.headers, timeout=120)

    return posted


def ignored_of(answer):
    header = answer.headers.get("x-ignored-parameters", "")
    return set(header.split(", ")) if header else set()


def test_each_is_answered_at_once(post, sent):
    route, body, ignored = sent
    answer = post(route, {**body, "stream": False})
    assert answer.status_code == 200, answer.text
    unread = {"stream_options"} if body.get("stream_options") else set()
    assert ignored_of(answer) == ignored | unread
    (choice,) = answer.json()["choices"]
    assert choice["finish_reason"] in {"stop", "length"}
    assert isinstance(choice["message"]["content"] if route == CHAT else choice["text"], str)
    num_tokens = answer.json()["usage"]["completion_tokens"]
    most = body.get("max_completion_tokens", body["max_tokens"])
    assert num_tokens == most if body.get("ignore_eos") else num_tokens <= most


def test_each_is_streamed(post, events, sent):
    route, body, ignored = sent
    answer = post(route, {**body, "stream": True})
    assert answer.status_code == 200, answer.text
    assert ignored_of(answer) == ignored
    chunks = [data for _, data in events(answer.content)]
    assert chunks.pop() == "[DONE]"
    if (body.get("stream_options") or {}).get("include_usage"):
        assert chunks.pop()["usage"]["prompt_tokens"] > 0
    assert [chunk["choices"][0]["finish_reason"] is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]


def test_an_unknown_field_is_named_and_its_name_cannot_break_the_header(post):
    odd = {"x\r\nSet-Cookie: a=b": 1, "\u540d": 1, "a" * 100: 1, **{f"field{number:03}": 1 for number in range(50)}}
    answer = post(CHAT, {"messages": HELLO, "max_tokens": 0, **odd})
    assert answer.status_code == 200, answer.text
    header = answer.headers["x-ignored-parameters"]
    names = header.split(", ")
    assert len(names) == 33
    assert names[-1] == "..."
    assert "a" * 64 in names
    assert "a" * 65 not in header
    assert header.isascii()
    assert header.isprintable()
    assert "Set-Cookie" not in answer.headers
    few = post(CHAT, {"messages": HELLO, "max_tokens": 0, "x\r\ny: 1": 1})
    assert few.headers["x-ignored-parameters"] == "x??y??1"


def test_a_strict_server_refuses_what_it_does_not_know_and_takes_openais_hints(make_app, login):
    client = make_app(CHATSVC_OPENAI__UNKNOWN_FIELDS="refuse").test_client()
    headers = login("alice", at=client)
    known = {"messages": HELLO, "max_tokens": 0, "user": "u", "store": False, "unknown": None}
    answer = client.post(CHAT, json=known, headers=headers)
    assert answer.status_code == 200, answer.json
    assert answer.headers["x-ignored-parameters"] == "store, user"
    for more in ({"odd": 1}, {"stream_options": {"odd": 1}}, {"messages": [{**HELLO[0], "odd": 1}]}):
        answer = client.post(CHAT, json={**known, **more}, headers=headers)
        assert answer.status_code == 400
        assert answer.json["error"] | {"message": ""} == {
            "message": "",
            "type": "invalid_request_error",
            "param": "odd",
            "code": "unknown_field",
        }


def test_an_agents_70_kilobytes_of_tools_are_taken(post):
    tools = [{"type": "function", "function": {**WEATHER, "description": "x" * 1000}} for _ in range(70)]
    body = {"messages": HELLO, "tools": tools, "tool_choice": "auto", "max_tokens": 4}
    assert post(CHAT, body).status_code == 200


def test_twelve_thousand_escaped_characters_are_a_chat(server):
    text = "".join(f"\\u{ord(character):04x}" for character in "\u4f60\u597d\u4e16\u754c" * 3200)
    data = b'{"messages": [{"role": "user", "content": "%s"}], "max_tokens": 0}' % text.encode()
    assert len(data) > 12_800 * 6
    headers = {**server.headers, "Content-Type": "application/json"}
    answer = httpx.post(f"{server.url}{CHAT}", content=data, headers=headers, timeout=120)
    # the small model's context may be too short for it; it was read
    assert answer.json().get("error", {}).get("code") in {None, "context_length_exceeded"}


def test_the_models_context_is_told_and_a_wrong_path_names_the_right_ones(server):
    (model,) = httpx.get(f"{server.url}/v1/models/", headers=server.headers).json()["data"]
    assert model["max_model_len"] == 8192
    for path in ("", "/"):
        one = httpx.get(f"{server.url}/v1/models/{model['id']}{path}", headers=server.headers)
        assert one.json()["id"] == model["id"]
    for path in ("/v1/", "/v1/chat", "/v1/v1/chat/completions", "/v1/engines"):
        answer = httpx.get(f"{server.url}{path}", headers=server.headers)
        assert answer.status_code == 404
        for route in ("POST /v1/chat/completions", "POST /v1/completions", "GET /v1/models"):
            assert route in answer.json()["error"]["message"]
