"""JSON Schemas of the answers, for the OpenAPI document; tests hold the answers to them. Data only."""

from __future__ import annotations

from typing import Any


def _object(**properties: Any) -> dict[str, Any]:
    """An object of exactly these."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _or_null(kind: str) -> dict[str, Any]:
    return {"type": [kind, "null"]}


_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_SECONDS = {"type": "number"}
_FINISH = {"enum": ["stop", "length"]}
_OBJECT = {"type": "object"}
_COUNTS = {"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT}

SCHEMAS: dict[str, Any] = {
    "Object": _OBJECT,
    "Error": _object(
        error=_object(message=_TEXT, type=_TEXT, param=_or_null("string"), code=_or_null("string")),
    ),
    "Event": {  # one event of a stream; the media type's schema is that of each
        "type": "object",
        "properties": {"event": _TEXT, "data": _TEXT, "id": _TEXT, "retry": _COUNT},
        "required": ["data"],
    },
    "Head": _object(origin=_TEXT, size=_COUNT),
    "Healthy": _object(status={"const": "ok"}),
    "NotHealthy": _object(status={"enum": ["starting", "draining", "error"]}, reason=_TEXT),
    "Usage": _object(**_COUNTS),
    "ChatAnswer": _object(
        id=_TEXT,
        result=_TEXT,
        finish_reason=_FINISH,
        usage=_ref("Usage"),
        model=_TEXT,
        conversation_id=_TEXT,
    ),
    "Token": _object(token=_TEXT, bytes=_list(_COUNT), logprob={"type": "number"}),
    "Logprobs": _object(
        content=_list(
            _object(token=_TEXT, bytes=_list(_COUNT), logprob={"type": "number"}, top_logprobs=_list(_ref("Token")))
        ),
        refusal={"type": "null"},
    ),
    "Completion": _object(
        id=_TEXT,
        object={"const": "chat.completion"},
        created=_COUNT,
        model=_TEXT,
        choices=_list(
            _object(
                index=_COUNT,
                message=_object(role={"const": "assistant"}, content=_TEXT, refusal={"type": "null"}),
                logprobs={"anyOf": [{"type": "null"}, _ref("Logprobs")]},
                finish_reason=_FINISH,
            )
        ),
        usage=_object(**_COUNTS, prompt_tokens_details=_object(cached_tokens=_COUNT)),
    ),
    "TextCompletion": _object(
        id=_TEXT,
        object={"const": "text_completion"},
        created=_COUNT,
        model=_TEXT,
        choices=_list(_object(index=_COUNT, text=_TEXT, logprobs=_or_null("object"), finish_reason=_FINISH)),
        usage=_object(**_COUNTS, prompt_tokens_details=_object(cached_tokens=_COUNT)),
    ),
    "Model": _object(id=_TEXT, object={"const": "model"}, created=_COUNT, owned_by=_TEXT, max_model_len=_COUNT),
    "Models": _object(object={"const": "list"}, data=_list(_ref("Model"))),
    "ConversationSummary": _object(id=_TEXT, title=_TEXT, created_at=_SECONDS, updated_at=_SECONDS),
    "Conversations": _object(data=_list(_ref("ConversationSummary")), has_more={"type": "boolean"}),
    "Conversation": _object(
        id=_TEXT,
        title=_TEXT,
        created_at=_SECONDS,
        updated_at=_SECONDS,
        messages=_list(
            _object(
                role={"enum": ["user", "assistant", "tool"]},
                content=_TEXT,
                created_at=_SECONDS,
                complete={"type": "boolean"},
            )
        ),
    ),
    "Tokens": _object(access_token=_TEXT, refresh_token=_TEXT, token_type={"const": "Bearer"}, expires_in=_COUNT),
    "Me": {
        "type": "object",
        "properties": {
            "principal": _TEXT,
            "roles": _list(_TEXT),
            "scopes": _list(_TEXT),
            "limits": _OBJECT,
            "remaining": _OBJECT,
            # one's requests that run (position 0) or wait for their turn
            "requests": _list(_object(position=_COUNT, estimate_s=_or_null("number"))),
        },
        "required": ["principal", "roles", "scopes", "limits", "remaining", "requests"],
    },
    "Jwks": _object(keys=_list(_OBJECT)),
}
