"""Conversations: one's own only, in order, complete or not."""

from __future__ import annotations

import itertools
import threading

import pytest
from sqlalchemy import text

from chatsvc.chat.conversations import Conversations
from chatsvc.chat.running_answers import RunningAnswer
from chatsvc.chat.types import Message
from chatsvc.errors import ConversationDeleted, NotFound
from chatsvc.store.database import Database
from chatsvc.store.migrate import migrate
from chatsvc.store.tables import Account

TURN = [Message("user", "one"), Message("assistant", "two")]


def first(account_id, conversation_id):
    return RunningAnswer(account_id, conversation_id, is_new=True)


def later(account_id, conversation_id):
    return RunningAnswer(account_id, conversation_id, is_new=False)


def _add_accounts(database):
    given = {"password_hash": "", "roles": "", "created_at": 0, "password_changed_at": 0, "source": "local"}
    with database.session() as session:
        session.add_all(Account(id=name, name=name, **given) for name in ("alice", "bob"))


@pytest.fixture
def conversations(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'chatsvc.db'}")
    migrate(database)
    _add_accounts(database)
    clock = itertools.count(1)
    yield Conversations(database, clock=lambda: float(next(clock)))
    database.close()


def test_turns_come_back_in_the_order_they_were_said(conversations):
    conversations.append(first("alice", "c"), TURN, complete=True)
    conversations.append(later("alice", "c"), [Message("user", "three"), Message("assistant", "fo")], complete=False)
    summary, turns = conversations.read("alice", "c")
    assert [turn.message.content for turn in turns] == ["one", "two", "three", "fo"]
    assert [turn.complete for turn in turns] == [True, True, True, False]
    assert (summary.title, summary.created_at, summary.updated_at) == ("one", 1.0, 2.0)
    assert conversations.history("alice", "c")[0] == Message("user", "one")


def test_anothers_conversation_is_not_there(conversations):
    conversations.append(first("alice", "c"), TURN, complete=True)
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
        conversations.append(first("alice", name), TURN, complete=True)
    conversations.append(later("alice", "a"), TURN, complete=True)
    pages = [conversations.summaries("alice", limit=2, offset=offset) for offset in (0, 2)]
    assert [[one.id for one in page] for page in pages] == [["a", "c"], ["b"]]


def test_a_renamed_conversation_keeps_its_name_and_a_deleted_one_is_gone(conversations):
    conversations.append(first("alice", "c"), TURN, complete=True)
    assert conversations.rename("alice", "c", "Capitals").title == "Capitals"
    conversations.append(later("alice", "c"), TURN, complete=True)
    assert conversations.read("alice", "c")[0].title == "Capitals"
    conversations.delete("alice", "c")
    with pytest.raises(NotFound):
        conversations.read("alice", "c")


@pytest.fixture(params=["sqlite", "postgresql"])
def either(request, conversations):
    """The same conversations in both databases."""
    if request.param == "sqlite":
        yield conversations
        return
    database = Database(request.getfixturevalue("postgres").url)
    with database.session() as session:
        session.execute(text("DROP SCHEMA public CASCADE"))
        session.execute(text("CREATE SCHEMA public"))
    migrate(database)
    _add_accounts(database)
    yield Conversations(database)
    database.close()


def is_gone(conversations):
    with pytest.raises(NotFound):
        conversations.read("alice", "c")
    return conversations.summaries("alice", limit=9, offset=0) == []


@pytest.mark.parametrize("is_new", [True, False])
def test_an_answer_does_not_bring_back_what_was_deleted_while_it_was_made(either, is_new):
    if not is_new:
        either.append(first("alice", "c"), TURN, complete=True)
    with either.answers.begin("alice", "c", is_new=is_new) as answer:
        answer.check()
        either.delete("alice", "c")
        with pytest.raises(ConversationDeleted):
            answer.check()
        either.append(answer, TURN, complete=True)
    assert is_gone(either)


def test_what_another_process_deleted_does_not_come_back_either(either):
    either.append(first("alice", "c"), TURN, complete=True)
    with either.answers.begin("alice", "c", is_new=False) as answer:
        Conversations(either._database).delete("alice", "c")  # it knows nothing of our answers
        either.append(answer, TURN, complete=True)
    assert is_gone(either)


def test_nobody_else_can_delete_what_is_being_answered(conversations):
    with conversations.answers.begin("alice", "c", is_new=True) as answer:
        with pytest.raises(NotFound):
            conversations.delete("bob", "c")
        with pytest.raises(NotFound):
            conversations.delete("alice", "another")
        answer.check()
        conversations.append(answer, TURN, complete=True)
    assert len(conversations.read("alice", "c")[1]) == 2


def test_deleting_and_storing_at_once_leaves_nothing(either):
    """Whichever comes first: an answer that is being stored is waited for, and then removed as well."""
    for _ in range(20):
        with either.answers.begin("alice", "c", is_new=True) as answer:
            storing = threading.Thread(target=either.append, args=(answer, TURN), kwargs={"complete": True})
            storing.start()
            either.delete("alice", "c")
            storing.join()
        assert is_gone(either)


@pytest.mark.parametrize("is_new", [True, False])
def test_of_an_account_that_was_removed_meanwhile_nothing_is_stored(either, is_new):
    if not is_new:
        either.append(first("alice", "c"), TURN, complete=True)
    with either.answers.begin("alice", "c", is_new=is_new) as answer:
        with either._database.session() as session:
            session.execute(text("DELETE FROM accounts WHERE id = 'alice'"))
        either.append(answer, TURN, complete=True)
    assert is_gone(either)


def test_a_nul_that_a_model_wrote_is_stored_as_a_replacement_character(either):
    either.append(first("alice", "c"), [Message("user", "Hi"), Message("assistant", "one\0two")], complete=True)
    assert [turn.message.content for turn in either.read("alice", "c")[1]] == ["Hi", "one\ufffdtwo"]


@pytest.mark.parametrize(
    ("said", "title"), [("  two\n words ", "two words"), ("x" * 61, "x" * 59 + "…"), ("x" * 60, "x" * 60), ("", "")]
)
def test_a_title_is_made_of_the_first_words(conversations, said, title):
    conversations.append(first("alice", "c"), [Message("user", said), Message("assistant", "a")], complete=True)
    assert conversations.read("alice", "c")[0].title == title
