"""``/conversations``: list, read, rename, delete one's own. Knows nothing about how answers are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypedDict

from flask import Response, request
from pydantic import Field

from chatsvc.chat.conversations import MAX_TITLE_CHARS, Conversations, Summary
from chatsvc.guard.principal import scope
from chatsvc.http.wire import context
from chatsvc.http.wire.routing import Operation, like, requires, route
from chatsvc.http.wire.schema import Body, Digits, Query, Text, parse_json, parse_query

# An API key made for something else must not read its account's conversations.
_CHAT = scope("chat")
MAX_PAGE = 200
MAX_OFFSET = 1_000_000
_PATH = "/conversations/<string(maxlength=64):conversation_id>"
_ID = "b1946ac92492d2347c6235b4d2611184"
_EXAMPLE = {"conversation_id": _ID}


class RenameBody(Body):
    """A new title."""

    title: Annotated[Text, Field(min_length=1, max_length=MAX_TITLE_CHARS, examples=["Colours of the sky"])]


class PageQuery(Query):
    """A page of the list."""

    limit: Annotated[int, Field(ge=1, le=MAX_PAGE, description="Maximum number of items."), Digits] = 50
    offset: Annotated[int, Field(ge=0, le=MAX_OFFSET, description="How many to skip."), Digits] = 0


class ConversationSummary(TypedDict):
    """A conversation without its messages; times in Unix seconds."""

    id: Annotated[str, like(_ID)]
    title: Annotated[str, like("Why is the sky blue?")]
    created_at: Annotated[float, like(1_767_225_600.25)]
    updated_at: Annotated[float, like(1_767_225_612.5)]


class ConversationPage(TypedDict):
    """A page of the list."""

    data: list[ConversationSummary]
    has_more: bool


class StoredMessage(TypedDict):
    """``complete`` is false for an answer that was cut off."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Annotated[str, like("Why is the sky blue?")]
    created_at: Annotated[float, like(1_767_225_600.25)]
    complete: Annotated[bool, like(True)]


class Conversation(ConversationSummary):
    """A conversation with its messages."""

    messages: list[StoredMessage]


@dataclass(frozen=True, slots=True)
class ConversationViews:
    """The views, and what they need."""

    TAG: ClassVar = "conversations"

    conversations: Conversations

    @route("GET", "/conversations")
    @requires(_CHAT)
    @Operation(query=PageQuery, answer=ConversationPage)
    def list_own(self) -> ConversationPage:
        """List your own conversations, the most recently used first."""
        page = parse_query(request, PageQuery)
        owner = context.principal().account_id
        found = self.conversations.summaries(owner, limit=page.limit + 1, offset=page.offset)
        return {"data": [summary(one) for one in found[: page.limit]], "has_more": len(found) > page.limit}

    @route("GET", _PATH)
    @requires(_CHAT)
    @Operation(answer=Conversation, path=_EXAMPLE)
    def read(self, conversation_id: str) -> Conversation:
        """Read a conversation."""
        found, turns = self.conversations.read(context.principal().account_id, conversation_id)
        messages: list[StoredMessage] = [
            {
                "role": turn.message.role,
                "content": turn.message.content,
                "created_at": turn.created_at,
                "complete": turn.complete,
            }
            for turn in turns
        ]
        return {**summary(found), "messages": messages}

    @route("PATCH", _PATH)
    @requires(_CHAT)
    @Operation(body=RenameBody, answer=ConversationSummary, path=_EXAMPLE)
    def rename(self, conversation_id: str) -> ConversationSummary:
        """Rename a conversation."""
        title = parse_json(request, RenameBody).title
        return summary(self.conversations.rename(context.principal().account_id, conversation_id, title))

    @route("DELETE", _PATH)
    @requires(_CHAT)
    @Operation(status=204, path=_EXAMPLE)
    def delete(self, conversation_id: str) -> Response:
        """Delete a conversation."""
        self.conversations.delete(context.principal().account_id, conversation_id)
        return Response(status=204)


def summary(found: Summary) -> ConversationSummary:
    """A conversation without its messages."""
    return {"id": found.id, "title": found.title, "created_at": found.created_at, "updated_at": found.updated_at}
