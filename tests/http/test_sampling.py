"""What clients of ``/v1`` ask of sampling, from the wire to the embedded model and back."""

from __future__ import annotations

import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = pytest.mark.engine

SHIP = "Invent a name for a ship."
URL = "/v1/chat/completions"


@pytest.fixture
def ask(client, login):
    """``ask(field=…)``: the answer's JSON."""
    headers = login("alice", at=client)

    def ask(status=200, content=SHIP, **fields):
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 16, "temperature": 0, **fields}
        answer = client.post(URL, json=body, headers=headers)
        assert answer.status_code == status, answer.text
        assert "x-ignored-parameters" not in answer.headers
        return answer.get_json()

    return ask


def text(answer, index=0):
    return answer["choices"][index]["message"]["content"]


def test_what_changes_nothing_gives_the_greedy_answer(ask):
    greedy = text(ask(repetition_penalty=1))
    for fields in (
        {"temperature": 1.3, "top_k": 1},
        {"temperature": 1.3, "min_p": 1},
        {"top_k": -1},
        {"top_k": 0, "min_p": 0, "logit_bias": {}, "ignore_eos": False, "min_tokens": 0},
        {"top_k": None, "min_p": None, "logit_bias": None, "logprobs": None, "top_logprobs": None, "n": None},
        {"logit_bias": {"foo": 0}, "logprobs": False, "top_logprobs": 0, "n": 1},
        {"logprobs": True, "top_logprobs": 20},
    ):
        assert text(ask(repetition_penalty=1, **fields)) == greedy


def test_a_long_poem_does_not_loop_by_default(client, login):
    """No eight words come again and again; without a penalty the embedded model repeats a line to the end."""
    body = {"messages": [{"role": "user", "content": "Write a long poem about a fruit"}], "max_tokens": 300}
    answer = client.post(URL, json={**body, "n": 4, "seed": 11}, headers=login("alice", at=client)).get_json()
    for index in range(4):
        words = text(answer, index).split()
        eights = Counter(tuple(words[start : start + 8]) for start in range(len(words) - 7))
        assert max(eights.values(), default=1) <= 2, text(answer, index)
    assert len({text(answer, index) for index in range(4)}) == 4  # no silent 0


def test_penalties_and_biases_change_the_answer(ask):
    # A greedy answer that may not end repeats itself, which is what penalties are against.
    long = {"content": "Say the word apple ten times.", "max_tokens": 60, "ignore_eos": True, "repetition_penalty": 1}
    plain = text(ask(**long))
    for field in ({"repetition_penalty": 1.5}, {"frequency_penalty": 2}, {"presence_penalty": 2}):
        assert text(ask(**{**long, **field})) != plain
    ids = [one["bytes"] for one in ask(logprobs=True)["choices"][0]["logprobs"]["content"]]
    assert len(set(map(tuple, ids))) > 1
    only = ask(logit_bias={"504": 100}, repetition_penalty=1, logprobs=True)["choices"][0]["logprobs"]["content"]
    assert {one["token"] for one in only} == {only[0]["token"]}  # whichever it is, it is all there is


def test_the_least_length_puts_off_the_end_and_stop_strings(ask):
    question = "What is the capital of France?"
    assert ask(content=question, max_tokens=40)["choices"][0]["finish_reason"] == "stop"
    for field in ({"min_tokens": 40}, {"ignore_eos": True}):
        answer = ask(content=question, max_tokens=40, **field)
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 40
    held = ask(stop=[" "], min_tokens=5)
    assert held["usage"]["completion_tokens"] > 5 > ask(stop=[" "])["usage"]["completion_tokens"]


def test_log_probabilities_have_openais_shape_and_their_bytes_are_the_text(ask):
    answer = ask(
        content="Write 世界 and an emoji.", logprobs=True, top_logprobs=3, max_tokens=30, temperature=0.5, seed=3
    )
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == answer["usage"]["completion_tokens"]
    assert bytes(byte for one in content for byte in one["bytes"]).decode("utf-8", "replace").startswith(text(answer))
    for one in content:
        assert set(one) == {"token", "bytes", "logprob", "top_logprobs"}
        assert one["token"] == bytes(one["bytes"]).decode("utf-8", "replace")
        top = [other["logprob"] for other in one["top_logprobs"]]
        assert len(top) == 3
        assert top == sorted(top, reverse=True)
        assert one["logprob"] <= top[0] <= 0
        assert sum(map(math.exp, top)) < 1.0001
    assert ask(logprobs=True)["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    assert ask()["choices"][0]["logprobs"] is None


def test_an_answer_goes_on_where_the_last_message_ends(ask):
    begun = [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "The capital of"},
    ]
    going_on = ask(messages=begun, continue_final_message=True, add_generation_prompt=False)
    assert text(going_on).startswith(" France")
    behind = ask(messages=begun, add_generation_prompt=False)
    assert behind["usage"]["prompt_tokens"] > going_on["usage"]["prompt_tokens"]
    for body in ({"messages": begun, "add_generation_prompt": True}, {"messages": begun[:1]}):
        assert ask(400, continue_final_message=True, **body)["error"]["param"] == "continue_final_message"


def test_several_choices_are_what_their_seeds_give_alone_and_all_count(ask):
    fields = {"temperature": 1.2, "max_tokens": 10, "min_tokens": 10}
    several = ask(n=3, seed=41, **fields)
    assert [choice["index"] for choice in several["choices"]] == [0, 1, 2]
    assert [text(several, index) for index in range(3)] == [text(ask(seed=41 + index, **fields)) for index in range(3)]
    assert len({text(several, index) for index in range(3)}) > 1
    assert several["usage"]["completion_tokens"] == 30
    last = ask(n=2, seed=2**63 - 1, **fields)
    assert text(last, 1) == text(ask(seed=-(2**63), **fields))


def test_choices_reserve_and_use_the_quota_of_each(make_app, login):
    client = make_app(CHATSVC_LIMITS__TOKENS_PER_DAY="400").test_client()
    headers = login("alice", at=client)
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 100, "temperature": 0, "min_tokens": 3}
    assert client.post(URL, json={**body, "n": 4}, headers=headers).status_code == 429
    answer = client.post(URL, json={**body, "n": 2, "max_tokens": 3}, headers=headers)
    left = client.get("/me", headers=headers).get_json()["remaining"]["tokens_per_day"]
    assert left == 400 - answer.get_json()["usage"]["total_tokens"]
    assert answer.get_json()["usage"]["completion_tokens"] == 6


def test_a_stream_of_several_choices_says_which_and_gives_what_the_answer_would(ask, client, login, events):
    fields = {"temperature": 1.1, "seed": 7, "n": 2, "logprobs": True, "top_logprobs": 1, "max_tokens": 12}
    whole = ask(**fields)
    body = {"messages": [{"role": "user", "content": SHIP}], **fields, "stream": True}
    stream = client.post(URL, json=body, headers=login("alice", at=client))
    chunks = [data for _, data in events(stream.data)]
    assert chunks.pop() == "[DONE]"
    for index in (0, 1):
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(one["delta"].get("content", "") for one in own) == text(whole, index)
        assert [one["finish_reason"] for one in own if one["finish_reason"]] == [
            whole["choices"][index]["finish_reason"]
        ]
        scored = [token for one in own for token in (one["logprobs"] or {"content": []})["content"]]
        assert scored == whole["choices"][index]["logprobs"]["content"]
    order = [chunk["choices"][0]["index"] for chunk in chunks]
    assert order != sorted(order)


def test_company_changes_nothing(ask, make_app, login, client):
    headers = login("bob", at=client)
    bodies = [
        {"messages": [{"role": "user", "content": SHIP}], "max_tokens": 12, **fields}
        for fields in (
            {"seed": 1, "repetition_penalty": 1.3, "logprobs": True, "top_logprobs": 2},
            {"seed": 2, "min_p": 0.05, "temperature": 1.4, "top_k": 0},
            {"seed": 3, "n": 2, "logit_bias": {"100": 5}, "logprobs": True},
            {"seed": 4, "presence_penalty": 1.5, "frequency_penalty": -0.5, "min_tokens": 6},
        )
    ]

    def choices(body):
        return client.application.test_client().post(URL, json=body, headers=headers).get_json()["choices"]

    alone = [choices(body) for body in bodies]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(choices, bodies)) == alone


def test_what_is_out_of_range_is_refused_by_name(ask):
    for param, fields in (
        ("top_k", {"top_k": -2}),
        ("top_k", {"top_k": 1.5}),
        ("min_p", {"min_p": 1.1}),
        ("repetition_penalty", {"repetition_penalty": 0}),
        ("logit_bias", {"logit_bias": {"foo": 1}}),
        ("logit_bias", {"logit_bias": {"-5": 1}}),
        ("logit_bias", {"logit_bias": {"60000": 1}}),
        ("logit_bias", {"logit_bias": {"7": 101}}),
        ("logit_bias", {"logit_bias": {str(number): 1 for number in range(1025)}}),
        ("n", {"n": 0}),
        ("n", {"n": 17}),
        ("top_logprobs", {"logprobs": True, "top_logprobs": 21}),
        ("top_logprobs", {"top_logprobs": 2}),
        ("min_tokens", {"min_tokens": -1}),
        ("ignore_eos", {"ignore_eos": 1}),
    ):
        assert ask(400, **fields)["error"]["param"] == param


def test_chat_takes_only_what_its_contract_names(client, login):
    headers = login("alice", at=client)
    for field in ("top_k", "min_p", "repetition_penalty", "n", "logprobs"):
        answer = client.post("/chat", json={"query": "Hi", field: 1}, headers=headers)
        assert (answer.status_code, answer.get_json()["error"]["param"]) == (400, field)
