"""``/conversations``: list, read, rename, delete one's own. Knows nothing about how they came to be."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from flask import Blueprint, Request, request
from pydantic import Field

from chatsvc.chat.conversations import MAX_TITLE_CHARS, Conversations, Summary
from chatsvc.guard.principal import scope
from chatsvc.http.wire import arguments, context
from chatsvc.http.wire.routing import requires
from chatsvc.http.wire.schema import Body, Text, parse_json

# A key that was made for something else must not read what its account has asked.
_CHAT = scope("chat")
MAX_PAGE = 200
MAX_OFFSET = 1_000_000


class RenameBody(Body):
    """A new title."""

    title: Annotated[Text, Field(min_length=1, max_length=MAX_TITLE_CHARS)]


def blueprint(conversations: Conversations) -> Blueprint:
    """The routes."""
    routes = Blueprint("conversations", __name__, url_prefix="/conversations")
    path = "/<string(maxlength=64):conversation_id>"

    @routes.get("")
    @requires(_CHAT)
    def list_own() -> dict[str, Any]:
        limit, offset = page(request)
        found = conversations.summaries(context.principal().account_id, limit=limit + 1, offset=offset)
        return {"data": [summary(one) for one in found[:limit]], "has_more": len(found) > limit}

    @routes.get(path)
    @requires(_CHAT)
    def read(conversation_id: str) -> dict[str, Any]:
        found, turns = conversations.read(context.principal().account_id, conversation_id)
        messages = [
            {
                "role": turn.message.role,
                "content": turn.message.content,
                "created_at": turn.created_at,
                "complete": turn.complete,
            }
            for turn in turns
        ]
        return {**summary(found), "messages": messages}

    @routes.patch(path)
    @requires(_CHAT)
    def rename(conversation_id: str) -> dict[str, Any]:
        body = parse_json(request, RenameBody)
        return summary(conversations.rename(context.principal().account_id, conversation_id, body.title))

    @routes.delete(path)
    @requires(_CHAT)
    def delete(conversation_id: str) -> tuple[str, int]:
        conversations.delete(context.principal().account_id, conversation_id)
        return "", 204

    return routes


def page(incoming: Request) -> tuple[int, int]:
    """``limit`` and ``offset`` of the query string.

    Raises:
        InvalidRequest: they are no numbers, or out of range.
    """
    return (
        arguments.number(incoming, "limit", 50, 1, MAX_PAGE),
        arguments.number(incoming, "offset", 0, 0, MAX_OFFSET),
    )


def summary(found: Summary) -> dict[str, Any]:
    """A conversation without its messages."""
    return asdict(found)
