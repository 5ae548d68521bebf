"""Conversations: one's own only, in order, complete or not."""

from __future__ import annotations

import itertools

import pytest

from chatsvc.chat.conversations import Conversations
from chatsvc.chat.types import Message
from chatsvc.errors import NotFound
from chatsvc.store.database import Database
from chatsvc.store.migrate import migrate
from chatsvc.store.tables import Account

TURN = [Message("user", "one"), Message("assistant", "two")]


@pytest.fixture
def conversations(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'chatsvc.db'}")
    migrate(database)
    with database.session() as session:
        for name in ("alice", "bob"):
            session.add(
                Account(
                    id=name, name=name, password_hash="", roles="", created_at=0, password_changed_at=0, source="local"
                )
            )
    clock = itertools.count(1)
    yield Conversations(database, clock=lambda: float(next(clock)))
    database.close()


def test_turns_come_back_in_the_order_they_were_said(conversations):
    conversations.append("alice", "c", TURN, complete=True)
    conversations.append("alice", "c", [Message("user", "three"), Message("assistant", "fo")], complete=False)
    summary, turns = conversations.read("alice", "c")
    assert [turn.message.content for turn in turns] == ["one", "two", "three", "fo"]
    assert [turn.complete for turn in turns] == [True, True, True, False]
    assert (summary.title, summary.created_at, summary.updated_at) == ("one", 1.0, 2.0)
    assert conversations.history("alice", "c")[0] == Message("user", "one")


def test_anothers_conversation_is_not_there(conversations):
    conversations.append("alice", "c", TURN, complete=True)
    for act in (
        lambda: conversations.read("bob", "c"),
        lambda: conversations.history("bob", "c"),
        lambda: conversations.rename("bob", "c", "mine now"),
        lambda: conversations.delete("bob", "c"),
        lambda: conversations.read("bob", "nothing"),
    ):
        with pytest.raises(NotFound):
            act()
    assert conversations.summaries("bob", limit=10, offset=0) == []
    assert conversations.read("alice", "c")[0].title == "one"


def test_the_last_used_comes_first_and_pages_do_not_overlap(conversations):
    for name in "abc":
        conversations.append("alice", name, TURN, complete=True)
    conversations.append("alice", "a", TURN, complete=True)
    pages = [conversations.summaries("alice", limit=2, offset=offset) for offset in (0, 2)]
    assert [[one.id for one in page] for page in pages] == [["a", "c"], ["b"]]


def test_a_renamed_conversation_keeps_its_name_and_a_deleted_one_is_gone(conversations):
    conversations.append("alice", "c", TURN, complete=True)
    assert conversations.rename("alice", "c", "Capitals").title == "Capitals"
    conversations.append("alice", "c", TURN, complete=True)
    assert conversations.read("alice", "c")[0].title == "Capitals"
    conversations.delete("alice", "c")
    with pytest.raises(NotFound):
        conversations.read("alice", "c")


def test_a_conversation_deleted_while_it_was_answered_comes_back_with_that_turn(conversations):
    conversations.append("alice", "c", TURN, complete=True)
    conversations.delete("alice", "c")
    conversations.append("alice", "c", TURN, complete=True)
    assert len(conversations.read("alice", "c")[1]) == 2


@pytest.mark.parametrize(
    ("said", "title"), [("  two\n words ", "two words"), ("x" * 61, "x" * 59 + "…"), ("x" * 60, "x" * 60), ("", "")]
)
def test_a_title_is_made_of_the_first_words(conversations, said, title):
    conversations.append("alice", "c", [Message("user", said), Message("assistant", "a")], complete=True)
    assert conversations.read("alice", "c")[0].title == title
