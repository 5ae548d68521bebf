"""What each route means, for the OpenAPI document: summary, body, answer. Data only; the routes are elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from chatsvc.http.api.admin import AccountBody, AccountPatchBody, KeyBody, KeyLimitsBody, LimitsBody, RotateBody
from chatsvc.http.api.audit import HeadBody
from chatsvc.http.api.auth import LoginBody, PasswordBody
from chatsvc.http.api.chat_schema import ChatBody
from chatsvc.http.api.conversations import MAX_OFFSET, MAX_PAGE, RenameBody
from chatsvc.http.api.openai.chat_schema import OpenAIBody
from chatsvc.http.api.openai.completions_schema import CompletionBody
from chatsvc.http.description.answers import SCHEMAS

__all__ = ["OPERATIONS", "SCHEMAS", "TAGS", "Operation"]

TAGS = {
    "chat": "Chat",
    "openai": "OpenAI-compatible",
    "conversations": "One's own conversations",
    "session": "Logging in and out",
    "health": "Health and metrics",
    "admin": "Administration",
    "pages": "Pages",
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One route and method.

    ``schema`` names the answer's schema; ``own_answers`` are answers that are not errors in the common shape.
    """

    tag: str
    summary: str
    schema: str | None = None
    body: type[BaseModel] | None = None
    status: int = 200
    errors: Sequence[int] = ()
    media_type: str = "application/json"
    query: Sequence[Mapping[str, Any]] = ()
    body_required: bool = True
    stream_of: str | None = None
    own_answers: Mapping[str, Any] = field(default_factory=dict)

    def answer(self) -> dict[str, Any]:
        """The answer when all goes well."""
        if self.status in {204, 302}:
            return {"description": "Done."}
        kind = "Event" if self.media_type == "text/event-stream" else self.schema
        schema: dict[str, Any] = {"$ref": f"#/components/schemas/{kind}"} if kind else {"type": "string"}
        content: dict[str, Any] = {self.media_type: {"schema": schema}}
        if self.stream_of is not None:
            event = {"$ref": "#/components/schemas/Event"}
            content["text/event-stream"] = {"schema": {"allOf": [event], "description": self.stream_of}}
        return {"description": "Done.", "content": content}


def _query(name: str, schema: Mapping[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": dict(schema), "description": description}


_LIMIT = _query("limit", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": 50}, "How many at most.")
_OFFSET = _query("offset", {"type": "integer", "minimum": 0, "maximum": MAX_OFFSET, "default": 0}, "How many to skip.")
_PAGE = _query("limit", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}, "How many at most.")
_AFTER = _query("after", {"type": "string"}, "The last name of the page before.")
_VERSION = _query("version", {"type": "string"}, "The model's revision; needed to go back to an older one.")
_ACCOUNT = _query("account", {"type": "string"}, "Only those of this account.")
_MOMENT = {"type": "string", "anyOf": [{"format": "date"}, {"format": "date-time"}]}
_FROM = _query("from", _MOMENT, "The first moment, ISO 8601.")
_ORIGIN = {**_query("origin", {"type": "string", "minLength": 1}, "The log's name."), "required": True}
_TO = _query("to", _MOMENT, "The first moment that is left out, ISO 8601.")

_NOT_OK = {
    "503": {
        "description": "It cannot; `reason` says why.",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/NotHealthy"}}},
    }
}
_BUSY = (404, 429)
_EVENTS = (
    '`event: start` with the ids, then events `data: {"token": "…"}`, then `event: done`, or `event: error` with the '
    "error in its usual shape."
)
_CHUNKS = "With `stream`: chunks as OpenAI's, then `data: [DONE]`."

OPERATIONS: dict[tuple[str, str], Operation] = {
    ("POST", "/chat"): Operation("chat", "Chat; the whole answer at once", "ChatAnswer", ChatBody, errors=_BUSY),
    ("POST", "/chat/stream"): Operation("chat", _EVENTS, body=ChatBody, errors=_BUSY, media_type="text/event-stream"),
    ("POST", "/v1/chat/completions"): Operation(
        "openai", "Create a chat completion", "Completion", OpenAIBody, errors=_BUSY, stream_of=_CHUNKS
    ),
    ("POST", "/v1/completions"): Operation(
        "openai", "Go on from a text, without roles", "TextCompletion", CompletionBody, errors=_BUSY, stream_of=_CHUNKS
    ),
    ("GET", "/v1/models"): Operation("openai", "List the models that are served", "Models"),
    ("GET", "/v1/models/{model_id}"): Operation("openai", "One model", "Model"),
    ("GET", "/conversations"): Operation(
        "conversations", "List one's own, the last used first", "Conversations", query=(_LIMIT, _OFFSET)
    ),
    ("GET", "/conversations/{conversation_id}"): Operation("conversations", "Read one", "Conversation"),
    ("PATCH", "/conversations/{conversation_id}"): Operation(
        "conversations", "Give one another title", "ConversationSummary", RenameBody
    ),
    ("DELETE", "/conversations/{conversation_id}"): Operation("conversations", "Delete one", status=204),
    ("POST", "/login"): Operation("session", "Log in", "Tokens", LoginBody, errors=(401, 429)),
    ("POST", "/refresh"): Operation("session", "Spend a refresh token for the next pair", "Tokens"),
    ("POST", "/logout"): Operation("session", "Log out: the session's tokens are dead at once", status=204),
    ("POST", "/password"): Operation(
        "session", "Change one's password", body=PasswordBody, status=204, errors=(409, 429)
    ),
    ("GET", "/oidc/login"): Operation("session", "Away to the identity provider", status=302),
    ("GET", "/oidc/callback"): Operation("session", "Back from the identity provider, to the chat page", status=302),
    ("POST", "/oidc/tokens"): Operation("session", "The tokens of that login", "Tokens", errors=(401,)),
    ("GET", "/me"): Operation("session", "Who am I, and what is left of my limits", "Me"),
    ("GET", "/.well-known/jwks.json"): Operation("session", "Public keys of tokens; none with HS256", "Jwks"),
    ("GET", "/healthz"): Operation("health", "Is the whole service able to answer?", "Healthy", own_answers=_NOT_OK),
    ("GET", "/health"): Operation("health", "The same as /healthz", "Healthy", own_answers=_NOT_OK),
    ("GET", "/readyz"): Operation("health", "Should it be sent requests?", "Healthy", own_answers=_NOT_OK),
    ("GET", "/livez"): Operation("health", "Does the process answer at all?", "Healthy"),
    ("GET", "/metrics"): Operation("health", "Prometheus metrics", media_type="text/plain"),
    ("GET", "/admin/accounts"): Operation("admin", "List accounts", "Object", query=(_PAGE, _AFTER)),
    ("POST", "/admin/accounts"): Operation(
        "admin", "Make an account", "Object", AccountBody, status=201, errors=(409,)
    ),
    ("GET", "/admin/accounts/{name}"): Operation("admin", "One account", "Object"),
    ("PATCH", "/admin/accounts/{name}"): Operation(
        "admin", "Change roles, password or whether it is disabled", "Object", AccountPatchBody, errors=(409,)
    ),
    ("DELETE", "/admin/accounts/{name}"): Operation("admin", "Remove an account", status=204, errors=(409,)),
    ("GET", "/admin/limits"): Operation("admin", "Default limits, those of roles and of accounts", "Object"),
    ("PUT", "/admin/limits/{name}"): Operation("admin", "Set an account's own limits", "Object", LimitsBody),
    ("GET", "/admin/keys"): Operation("admin", "List API keys, without their secrets", "Object", query=(_ACCOUNT,)),
    ("POST", "/admin/keys"): Operation(
        "admin", "Make an API key; it is shown once", "Object", KeyBody, status=201, errors=(404, 409)
    ),
    ("PATCH", "/admin/keys/{key_id}"): Operation(
        "admin", "Change a key's own limits: what is left out stays, null goes away", "Object", KeyLimitsBody
    ),
    ("POST", "/admin/keys/{key_id}/rotate"): Operation(
        "admin", "Give a key a new secret", "Object", RotateBody, body_required=False, errors=(409,)
    ),
    ("DELETE", "/admin/keys/{key_id}"): Operation("admin", "Revoke a key", status=204),
    ("POST", "/admin/signing-keys/rotate"): Operation("admin", "Sign tokens with a new key", "Object", status=201),
    ("GET", "/admin/model"): Operation("admin", "The model that is served, and how its engine is", "Object"),
    ("GET", "/admin/sessions"): Operation("admin", "Who is logged in", "Object", query=(_ACCOUNT,)),
    ("DELETE", "/admin/sessions/{sid}"): Operation("admin", "End a session", status=204),
    ("GET", "/admin/models"): Operation("admin", "The models of the store, and the one that is served", "Object"),
    ("POST", "/admin/models/{name}/activate"): Operation(
        "admin",
        "Serve another model; nobody is interrupted",
        "Object",
        status=202,
        errors=(409,),
        query=(_VERSION,),
    ),
    ("GET", "/admin/audit/export"): Operation(
        "admin", "A stretch of the audit log that verifies alone", media_type="application/jsonl", query=(_FROM, _TO)
    ),
    ("GET", "/audit/witness"): Operation("admin", "How much was seen of a log", "Head", query=(_ORIGIN,)),
    ("POST", "/audit/witness"): Operation(
        "admin", "Witness the head of another replica's log", "Head", HeadBody, errors=(409,)
    ),
    ("GET", "/"): Operation("pages", "The chat page", media_type="text/html"),
    ("GET", "/docs"): Operation("pages", "This document as a page", media_type="text/html"),
    ("GET", "/assets/{name}"): Operation("pages", "A file of a page", media_type="*/*"),
    ("GET", "/openapi.json"): Operation("pages", "This document", "Object"),
}
