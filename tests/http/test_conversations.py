"""``/conversations`` over HTTP."""

from __future__ import annotations

import pytest

from chatsvc.app import running_in
from chatsvc.chat.running_answers import RunningAnswer
from chatsvc.chat.types import Message
from chatsvc.guard.credentials.api_keys import NewKey


@pytest.fixture
def alice(bare_client, login):
    return login("alice", at=bare_client)


@pytest.fixture
def conversation(bare_app, bare_client, alice):
    account = bare_client.get("/me", headers=alice).json["account_id"]
    turns = [Message("user", "Hi"), Message("assistant", "Hello!")]
    running_in(bare_app).conversations.append(RunningAnswer(account, "c" * 32, is_new=True), turns, complete=True)
    return f"/conversations/{'c' * 32}"


def test_one_reads_renames_and_deletes_ones_own(bare_client, alice, conversation):
    listed = bare_client.get("/conversations", headers=alice).json
    assert [one["title"] for one in listed["data"]] == ["Hi"]
    assert listed["has_more"] is False
    read = bare_client.get(conversation, headers=alice).json
    assert [(m["role"], m["content"], m["complete"]) for m in read["messages"]] == [
        ("user", "Hi", True),
        ("assistant", "Hello!", True),
    ]
    assert bare_client.patch(conversation, json={"title": "问候"}, headers=alice).json["title"] == "问候"
    assert bare_client.delete(conversation, headers=alice).status_code == 204
    assert bare_client.get(conversation, headers=alice).status_code == 404


def test_anothers_is_404_like_one_that_is_not_there(bare_client, login, conversation):
    bob = login("bob", at=bare_client)
    for path in (conversation, "/conversations/nothing"):
        answers = [
            bare_client.get(path, headers=bob),
            bare_client.patch(path, json={"title": "x"}, headers=bob),
            bare_client.delete(path, headers=bob),
        ]
        assert [answer.status_code for answer in answers] == [404] * 3
        assert len({answer.json["error"]["message"] for answer in answers}) == 1
    assert bare_client.get("/conversations", headers=bob).json["data"] == []


def test_who_may_not_chat_has_no_conversations(bare_app, bare_client):
    running_in(bare_app).guard.accounts.add("viewer", "a viewer's long password", ["viewer"])
    answer = bare_client.post("/login", json={"username": "viewer", "password": "a viewer's long password"})
    headers = {"Authorization": f"Bearer {answer.json['access_token']}"}
    assert bare_client.get("/conversations", headers=headers).status_code == 403
    assert bare_client.get("/conversations").status_code == 401


@pytest.mark.parametrize("scope", ["metrics", "audit", "admin"])
def test_a_key_for_something_else_reads_and_deletes_nothing_of_its_account(bare_app, bare_client, login, scope):
    guard = running_in(bare_app).guard
    account = bare_client.get("/me", headers=login("admin", at=bare_client)).json["account_id"]
    kept = RunningAnswer(account, "d" * 32, is_new=True)
    running_in(bare_app).conversations.append(kept, [Message("user", "private")], complete=True)
    path = f"/conversations/{'d' * 32}"
    headers = {"X-Api-Key": guard.api_keys.create(NewKey("admin", scope, [scope]))[0]}
    for answer in (
        bare_client.get("/conversations", headers=headers),
        bare_client.get(path, headers=headers),
        bare_client.patch(path, json={"title": "x"}, headers=headers),
        bare_client.delete(path, headers=headers),
    ):
        assert answer.status_code == 403
        assert "private" not in answer.text
    chatting = {"X-Api-Key": guard.api_keys.create(NewKey("admin", "chat", ["chat"]))[0]}
    assert bare_client.get(path, headers=chatting).json["messages"][0]["content"] == "private"


def test_pages_are_as_long_as_asked(bare_app, bare_client, alice):
    account = bare_client.get("/me", headers=alice).json["account_id"]
    for number in range(3):
        answer = RunningAnswer(account, f"c{number}", is_new=True)
        running_in(bare_app).conversations.append(answer, [Message("user", str(number))], complete=True)
    first = bare_client.get("/conversations?limit=2", headers=alice).json
    second = bare_client.get("/conversations?limit=2&offset=2", headers=alice).json
    assert (len(first["data"]), first["has_more"], len(second["data"]), second["has_more"]) == (2, True, 1, False)


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=201",
        "limit=x",
        "limit=",
        "limit=-1",
        "limit=1.5",
        "offset=-1",
        "offset=²",
        "limit=1&limit=2",
        "offset=99999999999",
    ],
)
def test_a_bad_page_is_400_and_named(bare_client, alice, query):
    answer = bare_client.get(f"/conversations?{query}", headers=alice)
    assert answer.status_code == 400
    assert answer.json["error"]["param"] == query.partition("=")[0]


@pytest.mark.parametrize(
    "body", [{}, {"title": ""}, {"title": "x" * 201}, {"title": 1}, {"title": "\0"}, {"title": "x", "id": "y"}]
)
def test_a_bad_title_is_400(bare_client, alice, conversation, body):
    assert bare_client.patch(conversation, json=body, headers=alice).status_code == 400
