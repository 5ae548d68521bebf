"""What goes wrong around the chat page: in real Chromium, the real service, and a bad network between the two.

A question must never land in another conversation, and what was typed must not be lost.
"""

from __future__ import annotations

import json

import httpx
import pytest

from chatsvc.chat.conversations import Conversations
from chatsvc.chat.running_answers import RunningAnswer
from chatsvc.chat.types import Message
from chatsvc.store.database import Database
from tests.conftest import PASSWORDS
from tests.network import bad_network

from .test_browser import browse, driver, pytestmark  # noqa: F401  (fixtures, and the skip where there is no Chromium)

LONG = "Write a very long story about a lighthouse and its keeper."
ENTER = "\ue007"


@pytest.fixture(scope="module")
def network(server):
    with bad_network(server.port) as between:
        yield between


@pytest.fixture
def page(network, browse, wait_until):  # noqa: F811
    network.heal()
    network.asked.clear()
    opened = []

    def log_in(name="alice", language="en-US"):
        if not opened:
            browser = browse(language)
            browser.open(f"{network.url}/")
            opened.append(Page(browser, network, wait_until))
        opened[0].log_in(name)
        return opened[0]

    yield log_in
    network.heal()


class Page:
    """What a person does at the page."""

    def __init__(self, browser, network, wait_until):
        self.browser, self.network, self.wait_until = browser, network, wait_until

    def log_in(self, name):
        self.browser.run("document.getElementById('username').value = ''")
        self.browser.type("#username", name)
        self.browser.type("#password", PASSWORDS[name] + ENTER)
        self.wait_until(lambda: self.browser.is_shown("#input"))

    def ask(self, text):
        self.browser.run("document.getElementById('input').value = ''")
        self.browser.type("#input", text + ENTER)

    def wait_idle(self):
        self.wait_until(lambda: self.browser.is_shown("#send"))

    def wait_words(self):
        self.wait_until(lambda: self.browser.text(".message.assistant.busy .text") > [""])

    @property
    def typed(self):
        return self.browser.run("document.getElementById('input').value")

    @property
    def shown(self):
        return self.browser.text(".message .text")

    def text(self, selector):
        return "".join(self.browser.text(selector))

    def asked_bodies(self):
        return [json.loads(body) for _, path, body in self.network.asked if path == "/chat/stream"]


@pytest.fixture
def api(server):
    with httpx.Client(base_url=server.url, headers=server.headers, timeout=60) as client:
        yield client


def questions(api, conversation_id):
    found = api.get(f"/conversations/{conversation_id}").json()["messages"]
    return [message["content"] for message in found if message["role"] == "user"]


def conversation_of(api, question):
    """The ids of the conversations in which a question is."""
    listed = api.get("/conversations?limit=200").json()["data"]
    return [one["id"] for one in listed if question in questions(api, one["id"])]


def end_sessions(api, name):
    admin = api.post("/login", json={"username": "admin", "password": PASSWORDS["admin"]}).json()["access_token"]
    headers = {"Authorization": f"Bearer {admin}"}
    for session in api.get(f"/admin/sessions?account={name}", headers=headers).json()["sessions"]:
        assert api.delete(f"/admin/sessions/{session['sid']}", headers=headers).status_code == 204


def test_a_question_lands_in_the_conversation_on_the_screen(page, network, api, wait_until):
    old = api.post("/chat", json={"query": "The old one.", "max_tokens": 1}).json()["conversation_id"]
    at = page()
    # Stopped before the first word: nothing is kept, and the question is back in the field.
    network.hold_after(1)
    at.ask("Stopped at once.")
    wait_until(lambda: len(at.asked_bodies()) == 1)
    at.browser.click("#stop")
    at.wait_idle()
    assert at.typed == "Stopped at once."
    assert at.shown == []
    assert "Stopped before an answer began" in at.text("#status")
    network.heal()
    at.ask("First of the new one.")
    at.wait_idle()
    (first,) = conversation_of(api, "First of the new one.")
    assert questions(api, first) == ["First of the new one."]
    # "New conversation" while an answer is streaming.
    network.hold_after(5)
    at.ask(LONG)
    at.wait_words()
    at.browser.click("#new")
    network.heal()
    at.ask("After new conversation.")
    at.wait_idle()
    (second,) = conversation_of(api, "After new conversation.")
    assert questions(api, second) == ["After new conversation."]
    # Another conversation is opened while an answer is streaming: the words stay out of it.
    network.hold_after(5)
    at.ask(LONG)
    at.wait_words()
    at.browser.run("[...document.querySelectorAll('#list .open')].find(n => n.textContent == 'The old one.').click()")
    network.heal()
    wait_until(lambda: at.shown[:1] == ["The old one."])
    at.wait_idle()
    assert len(at.shown) == 2
    at.ask("Second of the old one.")
    at.wait_idle()
    assert conversation_of(api, "Second of the old one.") == [old]
    assert questions(api, old) == ["The old one.", "Second of the old one."]
    # Stopped after some words: what the service kept is what is shown, and the talk goes on in it.
    network.hold_after(5)
    at.ask(LONG)
    at.wait_words()
    at.browser.click("#stop")
    network.heal()
    wait_until(lambda: "not complete" in at.text(".message .note"))
    at.ask("Third of the old one.")
    at.wait_idle()
    assert questions(api, old)[-2:] == [LONG, "Third of the old one."]
    # Twice Enter is one question.
    at.ask("Only once." + ENTER)
    at.wait_idle()
    assert questions(api, old).count("Only once.") == 1
    assert at.browser.complaints() == []


def test_deleting_while_an_answer_is_streaming_deletes(page, network, api, wait_until):
    at = page()
    at.ask("Soon deleted.")
    at.wait_idle()
    (conversation,) = conversation_of(api, "Soon deleted.")
    wait_until(lambda: at.browser.text("#list li[aria-current] .open") == ["Soon deleted."])
    network.hold_after(5)
    at.ask(LONG)
    at.wait_words()
    at.browser.click("#list li[aria-current] .act:nth-of-type(3)")
    at.browser.accept_dialog()
    wait_until(lambda: at.shown == [])
    network.heal()
    wait_until(lambda: api.get(f"/conversations/{conversation}").status_code == 404)
    at.ask("After the deletion.")
    at.wait_idle()
    (new,) = conversation_of(api, "After the deletion.")
    assert new != conversation
    assert api.get(f"/conversations/{conversation}").status_code == 404
    # Deleted from elsewhere, while it is answered and before: the page says so, and gives the question back.
    at.ask(LONG)
    at.wait_words()
    assert api.delete(f"/conversations/{new}").status_code == 204
    wait_until(lambda: "has been deleted" in at.text("#alert"))
    assert (at.typed, at.shown) == (LONG, [])
    at.ask("Once more.")
    at.wait_idle()
    (new,) = conversation_of(api, "Once more.")
    assert api.delete(f"/conversations/{new}").status_code == 204
    at.ask("Where is it?")
    wait_until(lambda: "has been deleted" in at.text("#alert"))
    assert (at.typed, at.shown) == ("Where is it?", [])
    at.browser.picture("gone")


def test_a_login_that_ends_gives_what_was_typed_back_to_the_same_account_only(page, api, wait_until):
    at = page()
    at.ask("Before the end of the login.")
    at.wait_idle()
    for other in ("bob", "alice"):
        at.browser.run("document.getElementById('input').focus()")
        end_sessions(api, "alice")
        at.ask("My secret draft.")
        wait_until(lambda: at.browser.is_shown("#username"))
        assert "What you typed is kept." in at.text("#login-error")
        assert at.shown == []
        at.browser.picture("login-ended")
        at.log_in(other)
        if other == "bob":
            wait_until(lambda: "/conversations?limit=50&offset=0" in at.network.asked[-1][1])
            assert (at.typed, at.shown) == ("", [])
            at.browser.click("#log-out")
            wait_until(lambda: at.browser.is_shown("#username"))
            at.log_in("alice")
            assert (at.typed, at.shown) == ("", [])
            wait_until(lambda: "Before the end" in at.text("#list"))
            at.browser.click("#list .open")
            at.wait_idle()
    wait_until(lambda: at.shown[:1] == ["Before the end of the login."])
    assert at.typed == "My secret draft."
    at.wait_idle()
    at.ask("My secret draft.")
    at.wait_idle()
    (conversation,) = conversation_of(api, "My secret draft.")
    assert questions(api, conversation) == ["Before the end of the login.", "My secret draft."]


def test_a_lost_network_a_busy_service_and_a_refusal_lose_no_words(page, network, api, wait_until):
    at = page(language="zh-CN")
    # The access token has expired, and the service cannot renew it just now: the login stays.
    network.answers = {"/chat/stream": 401, "/refresh": 503}
    at.ask("Kept through an outage.")
    wait_until(lambda: "服务暂时无法访问数据库" in at.text("#alert"))
    assert at.browser.is_shown("#input")
    assert at.typed == "Kept through an outage."
    network.heal()
    at.browser.type("#input", ENTER)
    at.wait_idle()
    (conversation,) = conversation_of(api, "Kept through an outage.")
    assert at.text("#alert") == ""
    # The network goes down, in front of an answer and in the middle of one.
    network.is_down = True
    at.ask("Kept through a lost network.")
    wait_until(lambda: "连接已中断" in at.text("#alert"))
    assert at.typed == "Kept through a lost network."
    for cut in ("reset", "end"):
        network.heal()
        network.hold_after(5)
        network.cut = cut
        at.ask(f"{LONG} {cut}")
        wait_until(lambda: "此回答不完整" in at.text(".message:last-child .note"))
        at.wait_idle()
        at.browser.picture(f"cut-{cut}-zh")
        network.heal()
        at.ask(f"After {cut}.")
        at.wait_idle()
        assert questions(api, conversation)[-2:] == [f"{LONG} {cut}", f"After {cut}."]
    # A prompt that is refused.
    at.browser.run("document.getElementById('input').value = 'word '.repeat(30000)")
    at.browser.type("#input", ENTER)
    wait_until(lambda: "超出模型可处理的长度" in at.text("#alert"))
    at.browser.picture("refused-prompt-zh")
    assert at.typed == "word " * 30_000
    assert at.browser.run("document.getElementById('alert').getBoundingClientRect().bottom <= innerHeight")
    at.browser.click("header [data-action=language]")
    assert "too long for the model" in at.text("#alert")


def test_every_conversation_can_be_reached(server, page, api, wait_until):
    account_id = api.get("/me").json()["account_id"]
    database = Database(server.settings.store_url)
    try:
        conversations = Conversations(database)
        for number in range(120):
            answer = RunningAnswer(account_id, f"many{number}", is_new=True)
            turns = [Message("user", f"Conversation {number}"), Message("assistant", "Yes.")]
            conversations.append(answer, turns, complete=number != 0)
    finally:
        database.close()
    at = page()
    wait_until(lambda: len(at.browser.text("#list .open")) == 50)
    at.browser.picture("list")
    while at.browser.is_shown("#more"):
        num_listed = len(at.browser.text("#list .open"))
        at.browser.click("#more")
        wait_until(lambda: len(at.browser.text("#list .open")) > num_listed)  # noqa: B023
    listed = at.browser.text("#list .open")
    assert {f"Conversation {number}" for number in range(120)} <= set(listed)
    assert len(api.get("/conversations?limit=200").json()["data"]) == len(listed)
    at.browser.run("[...document.querySelectorAll('#list .open')].find(n => n.textContent == 'Conversation 0').click()")
    wait_until(lambda: at.shown == ["Conversation 0", "Yes."])
    assert at.browser.text(".message .note") == ["", "This answer is not complete."]
    for number in range(120):
        assert api.delete(f"/conversations/many{number}").status_code == 204
