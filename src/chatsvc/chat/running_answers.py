"""The answers that this process is generating, by conversation: deleting a conversation cancels them.

Knows nothing about the database or about other processes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from chatsvc.errors import ConversationDeleted


class RunningAnswer:
    """An answer that is being generated and will be stored in a conversation.

    Attributes:
        conversation_id: None if the answer is not stored.
        is_new: the conversation is created with the answer; otherwise it must still exist when the answer is stored.
        is_deleted: the conversation was deleted meanwhile; the answer must not be stored.
        storing: a lock; held while the answer is stored and while ``is_deleted`` is set.
    """

    def __init__(self, account_id: str, conversation_id: str | None, *, is_new: bool) -> None:
        self.account_id = account_id
        self.conversation_id = conversation_id
        self.is_new = is_new
        self.is_deleted = False
        self.storing = threading.Lock()

    def check(self) -> None:
        """End the request if its conversation was deleted. Cheap: call it often.

        Raises:
            ConversationDeleted: it was.
        """
        if self.is_deleted:
            raise ConversationDeleted


class RunningAnswers:
    """All of them. Thread-safe."""

    def __init__(self) -> None:
        self._running: set[RunningAnswer] = set()
        self._lock = threading.Lock()

    @contextmanager
    def begin(self, account_id: str, conversation_id: str | None, *, is_new: bool) -> Iterator[RunningAnswer]:
        """Register an answer until the block ends."""
        answer = RunningAnswer(account_id, conversation_id, is_new=is_new)
        with self._lock:
            self._running.add(answer)
        try:
            yield answer
        finally:
            with self._lock:
                self._running.discard(answer)

    def delete(self, account_id: str, conversation_id: str) -> bool:
        """Mark a conversation's running answers as deleted. Returns whether there were any."""
        asked_for = (account_id, conversation_id)
        with self._lock:
            found = [each for each in self._running if (each.account_id, each.conversation_id) == asked_for]
        for answer in found:
            with answer.storing:  # waits for one that is being stored, so that the caller finds it in the database
                answer.is_deleted = True
        return bool(found)
