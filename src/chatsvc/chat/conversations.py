"""Conversations in the database, the only place that stores prompts. Each account sees only its own.

Knows nothing about HTTP or how a completion is made.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from chatsvc.chat.running_answers import RunningAnswer, RunningAnswers
from chatsvc.chat.types import Message, Role
from chatsvc.errors import NotFound
from chatsvc.store.database import Database
from chatsvc.store.tables import Account, Conversation, ConversationMessage

MAX_TITLE_CHARS = 200
_DERIVED_TITLE_CHARS = 60
_ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant", "tool": "tool"}


@dataclass(frozen=True, slots=True)
class Summary:
    """A conversation in a list."""

    id: str
    title: str
    created_at: float
    updated_at: float


@dataclass(frozen=True, slots=True)
class Turn:
    """A stored message; a partial answer is not ``complete``."""

    message: Message
    created_at: float
    complete: bool


class Conversations:
    """Reads and writes conversations. Every call names the account and finds only its own conversations."""

    def __init__(
        self,
        database: Database,
        *,
        clock: Callable[[], float] = time.time,
        new_id: Callable[[], str] = lambda: secrets.token_hex(16),
    ) -> None:
        self._database = database
        self._clock = clock
        self.new_id = new_id
        self.answers = RunningAnswers()

    def summaries(self, account_id: str, *, limit: int, offset: int) -> list[Summary]:
        """The account's conversations, the last used first."""
        query = (
            select(Conversation)
            .where(Conversation.account_id == account_id)
            .order_by(Conversation.updated_at.desc(), Conversation.id)
            .limit(limit)
            .offset(offset)
        )
        with self._database.reading() as session:
            return [_summary(row) for row in session.scalars(query)]

    def read(self, account_id: str, conversation_id: str) -> tuple[Summary, list[Turn]]:
        """A whole conversation.

        Raises:
            NotFound: it does not exist, or belongs to another account.
        """
        query = (
            select(ConversationMessage)
            .where(ConversationMessage.conversation_id == conversation_id)
            .order_by(ConversationMessage.position)
        )
        with self._database.reading() as session:
            summary = _summary(_own(session, account_id, conversation_id))
            return summary, [
                Turn(Message(_ROLES[row.role], row.content), row.created_at, row.complete)
                for row in session.scalars(query)
            ]

    def history(self, account_id: str, conversation_id: str) -> list[Message]:
        """The messages so far, for a prompt.

        Raises:
            NotFound: it does not exist, or belongs to another account.
        """
        return [turn.message for turn in self.read(account_id, conversation_id)[1]]

    def rename(self, account_id: str, conversation_id: str, title: str) -> Summary:
        """Change its title.

        Raises:
            NotFound: it does not exist, or belongs to another account.
        """
        with self._database.session() as session:
            row = _own(session, account_id, conversation_id)
            row.title = title
            return _summary(row)

    def delete(self, account_id: str, conversation_id: str) -> None:
        """Delete it and its messages; running answers in it are cancelled and not stored.

        A conversation whose first answer is still running exists only as an id, in the process that answers.

        Raises:
            NotFound: it does not exist, or belongs to another account.
        """
        was_running = self.answers.delete(account_id, conversation_id)
        with self._database.session() as session:
            row = session.get(Conversation, conversation_id)
            if was_running and row is None:
                return
            row = _own(session, account_id, conversation_id)
            session.execute(delete(ConversationMessage).where(ConversationMessage.conversation_id == row.id))
            session.delete(row)

    def append(self, answer: RunningAnswer, turns: Sequence[Message], *, complete: bool) -> None:
        """Store new turns in the answer's conversation, which is created if it is new.

        ``complete`` is about the last turn. If the conversation or the account was deleted meanwhile, nothing is
        stored.
        """
        conversation_id = answer.conversation_id
        assert conversation_id is not None, "an answer without a conversation is not stored"
        now = self._clock()
        with answer.storing:
            if answer.is_deleted:
                return
            with self._database.session() as session:
                if session.get(Account, answer.account_id, with_for_update={"read": True, "key_share": True}) is None:
                    return
                if answer.is_new:
                    self._make(session, answer.account_id, conversation_id, _title_from(turns), now)
                elif not _touch(session, answer.account_id, conversation_id, now):
                    return  # another process has deleted it
                self._add(session, conversation_id, turns, now, complete=complete)

    @staticmethod
    def _make(session: Session, account_id: str, conversation_id: str, title: str, now: float) -> None:
        session.add(
            Conversation(id=conversation_id, account_id=account_id, title=title, created_at=now, updated_at=now)
        )
        session.flush()

    def _add(
        self, session: Session, conversation_id: str, turns: Sequence[Message], now: float, *, complete: bool
    ) -> None:
        last = session.scalar(
            select(func.max(ConversationMessage.position)).where(ConversationMessage.conversation_id == conversation_id)
        )
        first = 0 if last is None else last + 1
        session.add_all(
            ConversationMessage(
                id=self.new_id(),
                conversation_id=conversation_id,
                position=first + index,
                role=turn.role,
                # A model may write NUL, which PostgreSQL refuses.
                content=turn.content.replace("\0", "\N{REPLACEMENT CHARACTER}"),
                created_at=now,
                complete=complete or index < len(turns) - 1,
            )
            for index, turn in enumerate(turns)
        )


def _touch(session: Session, account_id: str, conversation_id: str, now: float) -> bool:
    """Set when it was last used, which locks its row for the transaction. False if it does not exist."""
    touched = session.execute(
        update(Conversation)
        .where(Conversation.id == conversation_id, Conversation.account_id == account_id)
        .values(updated_at=now)
    )
    return getattr(touched, "rowcount", 0) == 1


def _own(session: Session, account_id: str, conversation_id: str) -> Conversation:
    row = session.get(Conversation, conversation_id)
    if row is None or row.account_id != account_id:
        raise NotFound("There is no such conversation of yours; GET /conversations lists them.")
    return row


def _summary(row: Conversation) -> Summary:
    return Summary(row.id, row.title, row.created_at, row.updated_at)


def _title_from(turns: Sequence[Message]) -> str:
    """The first words of what was asked."""
    text = " ".join(next((turn.content for turn in turns if turn.role == "user"), "").split())
    return text if len(text) <= _DERIVED_TITLE_CHARS else text[: _DERIVED_TITLE_CHARS - 1] + "…"
