"""Which answers are being generated for which conversation, so that deleting a conversation reaches them.

Knows nothing about the database; holds only this process's answers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from chatsvc.errors import ConversationDeleted


class Answer:
    """One answer on its way into a conversation.

    Attributes:
        conversation_id: None where nothing is kept.
        is_new: storing the answer makes the conversation; otherwise the conversation must still be there.
        is_deleted: the conversation was deleted meanwhile: the answer must not be stored.
        storing: held while the answer is stored, and while ``is_deleted`` is set.
    """

    def __init__(self, account_id: str, conversation_id: str | None, *, is_new: bool) -> None:
        self.account_id = account_id
        self.conversation_id = conversation_id
        self.is_new = is_new
        self.is_deleted = False
        self.storing = threading.Lock()

    def check(self) -> None:
        """Cheap: call it often while the answer is generated.

        Raises:
            ConversationDeleted: nobody will be able to read it.
        """
        if self.is_deleted:
            raise ConversationDeleted


class Answers:
    """The answers of this process that have not ended."""

    def __init__(self) -> None:
        self._running: set[Answer] = set()
        self._lock = threading.Lock()

    @contextmanager
    def begin(self, account_id: str, conversation_id: str | None, *, is_new: bool) -> Iterator[Answer]:
        """An answer that can be found by its conversation until the block ends."""
        answer = Answer(account_id, conversation_id, is_new=is_new)
        with self._lock:
            self._running.add(answer)
        try:
            yield answer
        finally:
            with self._lock:
                self._running.discard(answer)

    def delete(self, account_id: str, conversation_id: str) -> bool:
        """Mark the running answers of a conversation as deleted; whether there were any."""
        asked_for = (account_id, conversation_id)
        with self._lock:
            found = [each for each in self._running if (each.account_id, each.conversation_id) == asked_for]
        for answer in found:
            with answer.storing:  # one that is being stored just now is in the database when we look there
                answer.is_deleted = True
        return bool(found)
