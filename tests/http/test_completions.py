"""``/v1/completions`` against the real model: one prompt or several, texts or ids, whole or streamed, and what is refused."""

from __future__ import annotations

import pytest

from chatsvc.app import running_in

pytestmark = pytest.mark.engine

URL = "/v1/completions"
PROMPT = "The capital of France is"


@pytest.fixture
def alice(login):
    return login("alice")


@pytest.fixture
def complete(client, alice):
    def completed(**fields):
        answer = client.post(URL, json={"max_tokens": 8, "temperature": 0, **fields}, headers=alice)
        assert answer.status_code == 200, answer.json
        return answer.json

    return completed


@pytest.fixture
def ids_of(app):
    """The ids of a text, by the model's own tokenizer."""
    running = running_in(app)
    renderer, _ = running.service.planner._renderer_for(running.engine.card())
    return lambda text: renderer._tokenizer.encode(text, add_special_tokens=False).ids


def test_a_text_goes_on_without_a_template(complete, ids_of):
    answer = complete(prompt=PROMPT)
    assert set(answer) == {"id", "object", "created", "model", "choices", "usage"}
    assert answer["object"] == "text_completion"
    (choice,) = answer["choices"]
    assert choice == {"index": 0, "text": choice["text"], "logprobs": None, "finish_reason": "length"}
    assert "Paris" in choice["text"]
    assert answer["usage"]["prompt_tokens"] == len(ids_of(PROMPT))  # nothing of a template beside it
    assert answer["usage"]["completion_tokens"] == 8


def test_ids_are_the_text_they_stand_for(complete, ids_of):
    by_text, by_ids = complete(prompt=PROMPT), complete(prompt=ids_of(PROMPT))
    assert by_ids["choices"] == by_text["choices"]
    assert complete(prompt=[ids_of(PROMPT)])["choices"] == by_text["choices"]


def test_several_prompts_are_several_choices_each_as_if_alone(complete):
    prompts = [PROMPT, "One, two, three,", "Water boils at"]
    together = complete(prompt=prompts)
    alone = [complete(prompt=prompt) for prompt in prompts]
    assert [choice["text"] for choice in together["choices"]] == [one["choices"][0]["text"] for one in alone]
    assert [choice["index"] for choice in together["choices"]] == [0, 1, 2]
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert together["usage"][name] == sum(one["usage"][name] for one in alone)


def test_a_stream_gives_the_same_texts(client, alice, complete, events):
    body = {"prompt": [PROMPT, "One, two, three,"], "max_tokens": 8, "temperature": 0, "echo": True}
    whole = complete(**body)
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    answer = client.post(URL, json=asked, headers=alice)
    assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    chunks = [data for _, data in events(answer.get_data())]
    assert chunks[-1] == "[DONE]"
    assert chunks[-2]["choices"] == []
    assert {name: chunks[-2]["usage"][name] for name in ("prompt_tokens", "completion_tokens")} == {
        name: whole["usage"][name] for name in ("prompt_tokens", "completion_tokens")
    }
    texts, reasons = ["", ""], [[], []]
    for chunk in chunks[:-2]:
        assert chunk["object"] == "text_completion"
        assert chunk["usage"] is None
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["text"]
        reasons[choice["index"]].append(choice["finish_reason"])
    assert texts == [choice["text"] for choice in whole["choices"]]
    for seen in reasons:
        assert seen[-1] == "length"
        assert set(seen[:-1]) == {None}


def test_an_echo_is_the_prompt_before_the_answer(complete, ids_of):
    plain = complete(prompt=PROMPT)["choices"][0]["text"]
    assert complete(prompt=PROMPT, echo=True)["choices"][0]["text"] == PROMPT + plain
    assert complete(prompt=ids_of(PROMPT), echo=True)["choices"][0]["text"] == PROMPT + plain
    nothing = complete(prompt=PROMPT, echo=True, max_tokens=0)
    assert nothing["choices"][0] == {"index": 0, "text": PROMPT, "logprobs": None, "finish_reason": "length"}
    assert nothing["usage"]["completion_tokens"] == 0


def test_a_text_is_never_a_special_token(complete, ids_of):
    marker = "<|im_start|>"
    assert len(ids_of(marker)) == 1
    assert complete(prompt=marker, max_tokens=1)["usage"]["prompt_tokens"] > 1
    assert complete(prompt=ids_of(marker), max_tokens=1)["usage"]["prompt_tokens"] == 1  # ids are what they are


def test_the_operators_text_goes_before_every_prompt(make_app, login, ids_of, tmp_path):
    text = "You speak of ships only."
    client = make_app(CHATSVC_CHAT__SYSTEM_PROMPT=text, home=tmp_path / "other").test_client()
    headers = login("alice", at=client)
    expected = len(ids_of(f"{text}\n\n{PROMPT}")), len(ids_of(f"{text}\n\n")) + len(ids_of(PROMPT))
    for prompt, num_tokens in zip((PROMPT, ids_of(PROMPT)), expected, strict=True):
        answer = client.post(URL, json={"prompt": prompt, "max_tokens": 1}, headers=headers).json
        assert answer["usage"]["prompt_tokens"] == num_tokens


def test_sixteen_tokens_and_no_conversation_unless_asked(client, alice):
    answer = client.post(URL, json={"prompt": PROMPT, "temperature": 0, "user": "u", "n": None}, headers=alice)
    assert answer.json["usage"]["completion_tokens"] <= 16
    assert answer.headers["x-ignored-parameters"] == "user"
    assert client.get("/conversations", headers=alice).json["data"] == []


def test_every_prompt_is_a_request_to_the_limits_and_one_refused_leaves_none_running(make_app, login):
    client = make_app(CHATSVC_LIMITS__REQUESTS_PER_MINUTE="3").test_client()
    headers = login("alice", at=client)
    assert client.post(URL, json={"prompt": [PROMPT] * 2, "max_tokens": 1}, headers=headers).status_code == 200
    for stream in (False, True):
        answer = client.post(URL, json={"prompt": [PROMPT] * 2, "stream": stream}, headers=headers)
        assert answer.status_code == 429
        assert answer.headers["Retry-After"]
    assert client.get("/me", headers=headers).json["requests"] == []


BAD = [
    ("prompt", {}),
    ("prompt", {"prompt": None}),
    ("prompt", {"prompt": ""}),
    ("prompt", {"prompt": []}),
    ("prompt", {"prompt": ["x"] * 17}),
    ("prompt[0]", {"prompt": [""]}),
    ("prompt[1]", {"prompt": ["x", 5]}),
    ("prompt[0]", {"prompt": [[]]}),
    ("prompt[0]", {"prompt": [-1]}),
    ("prompt[1]", {"prompt": [5, "x"]}),
    ("prompt[0][1]", {"prompt": [[5, 1.5]]}),
    ("prompt", {"prompt": [10**9]}),
    ("prompt", {"prompt": "x\0"}),
    ("suffix", {"prompt": "x", "suffix": "y"}),
    ("best_of", {"prompt": "x", "best_of": 2}),
    ("logprobs", {"prompt": "x", "logprobs": 6}),
    ("echo", {"prompt": "x", "echo": "yes"}),
    ("max_tokens", {"prompt": "x", "max_tokens": 5000}),
    ("prompt", {"prompt": "many words " * 10_000}),
]


def test_what_cannot_be_done_is_400_and_named(client, alice):
    found = []
    for param, body in BAD:
        answer = client.post(URL, json=body, headers=alice)
        if answer.status_code != 400 or answer.json["error"]["param"] != param:
            found.append((param, body, answer.status_code, answer.json))
    assert found == []


def test_several_choices_and_log_probabilities_of_several_prompts(complete):
    fields = {"max_tokens": 4, "temperature": 1, "seed": 3, "logprobs": 2}
    answer = complete(prompt=[PROMPT, "One, two,"], n=2, echo=True, **fields)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    alone = [
        complete(prompt=prompt, **{**fields, "seed": seed})["choices"][0]
        for prompt in (PROMPT, "One, two,")
        for seed in (3, 4)
    ]
    assert [choice["text"] for choice in answer["choices"]] == [
        prompt + choice["text"] for prompt, choice in zip([PROMPT, PROMPT, *["One, two,"] * 2], alone, strict=True)
    ]
    for choice, other in zip(answer["choices"], alone, strict=True):
        scored = choice["logprobs"]
        assert scored["token_logprobs"] == other["logprobs"]["token_logprobs"]
        assert len(scored["tokens"]) == len(scored["top_logprobs"]) == 4
        start = len(choice["text"]) - len(other["text"])
        assert scored["text_offset"] == [start + offset for offset in other["logprobs"]["text_offset"]]
        assert "".join(scored["tokens"]) == other["text"]
    assert answer["usage"]["completion_tokens"] == 16


def test_streamed_choices_and_log_probabilities_are_those_of_the_whole_answer(complete, client, alice, events):
    fields = {"prompt": [PROMPT, "One, two,"], "n": 2, "max_tokens": 4, "seed": 3, "logprobs": 1, "echo": True}
    whole = complete(**{**fields, "temperature": 1})
    stream = client.post(URL, json={**fields, "temperature": 1, "stream": True}, headers=alice)
    chunks = [data["choices"][0] for _, data in events(stream.data) if data != "[DONE]"]
    for choice in whole["choices"]:
        own = [chunk for chunk in chunks if chunk["index"] == choice["index"]]
        assert "".join(chunk["text"] for chunk in own) == choice["text"]
        assert [chunk["finish_reason"] for chunk in own if chunk["finish_reason"]] == [choice["finish_reason"]]
        scored = [chunk["logprobs"] for chunk in own if chunk["logprobs"]]
        for key, values in choice["logprobs"].items():
            assert [value for part in scored for value in part[key]] == values
