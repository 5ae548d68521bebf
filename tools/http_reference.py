"""``docs/reference/http.md``, written from the OpenAPI document of an application with every route."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from chatsvc.app import create_app, running_in
from chatsvc.settings.load import load

_HEAD = """\
# HTTP

Made by `make docs` from the OpenAPI document, which the service returns at `/openapi.json` and shows at `/docs`;
a test compares them. nginx also serves everything below `/api/`.

The examples expect the service at `http://127.0.0.1:8080`, an access token or an API key in `$TOKEN`, and a refresh
token in `$REFRESH_TOKEN`. A bearer (`Authorization: Bearer …`) is an access token from `/login` or an API key `csk_…`;
a key may also be sent as `X-Api-Key`. The client's address is checked first, then path, method, token, scope and body.
"""
_ERRORS = """\
## Errors

Every error has one shape, and every answer has an `X-Request-Id`. What each `code` means is in [Errors](errors.md).

```json
{example}
```

| status | means |
|---|---|
{rows}
405 (wrong method) has an `Allow` header, 401 has `WWW-Authenticate: Bearer`, 429 and 503 have `Retry-After`.
"""
_COMMON = {"400", "403", "500", "503"}
_PROVIDER = {
    "CHATSVC_OIDC__ISSUER": "https://sso.example",
    "CHATSVC_OIDC__CLIENT_ID": "chatsvc",
    "CHATSVC_OIDC__REDIRECT_URL": "https://chat.example/oidc/callback",
}


def page() -> str:
    """The whole page."""
    return "\n".join(_page(_document()))


def _document() -> dict[str, Any]:
    """The document with the routes that only a configured provider adds, at the default limits."""
    with tempfile.TemporaryDirectory() as home:
        local = {"CHATSVC_HOME": home, "CHATSVC_ENGINE__SOCKET": f"{home}/engine.sock"}
        app = create_app(load({**local, **_PROVIDER, "CHATSVC_GUARD__ALLOWED_NETWORKS": '["127.0.0.1"]'}))
        try:
            document: dict[str, Any] = app.test_client().get("/openapi.json").get_json()
        finally:
            running_in(app).close()
    return document


def _page(document: dict[str, Any]) -> Iterator[str]:
    yield _HEAD
    operations = [
        (method.upper(), path, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
    ]
    sections = [
        (tag["description"], [one for one in operations if tag["name"] in one[2]["tags"]]) for tag in document["tags"]
    ]
    yield "| endpoint | needs | what |\n|---|---|---|"
    for _, members in sections:
        for method, path, operation in members:
            link = f"[`{method} {path}`](#{_anchor(f'{method} {path}')})"
            yield f"| {link} | {_needs(operation)} | {operation['summary']} |"
    yield ""
    yield _errors(document["components"])
    for title, members in sections:
        yield f"## {title}\n"
        for method, path, operation in members:
            yield from _operation(method, path, operation)
    yield "## Objects\n"
    for name, schema in sorted(document["components"]["schemas"].items()):
        yield from _object(name, schema)


def _errors(components: Mapping[str, Any]) -> str:
    rows = [
        f"| {name.removeprefix('Error')} | {answer['description']} |"
        for name, answer in components["responses"].items()
    ]
    example = {
        "error": {"message": "…", "type": "invalid_request_error", "param": "max_tokens", "code": "invalid_value"}
    }
    return _ERRORS.format(example=json.dumps(example, ensure_ascii=False), rows="\n".join(rows) + "\n")


def _needs(operation: Mapping[str, Any]) -> str:
    return operation["description"].rpartition("\n\n")[2].removeprefix("Needs ").removesuffix(".")


def _anchor(title: str) -> str:
    return "".join(char for char in title.lower().replace(" ", "-") if char.isalnum() or char in "-_")


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"### `{method} {path}`\n"
    yield f"{operation['summary'].removesuffix('?')}{'?' if operation['summary'].endswith('?') else '.'}\n"
    yield f"{operation['description']}\n"
    if "parameters" in operation:
        yield "| parameter | in | type | |\n|---|---|---|---|"
        for one in operation["parameters"]:
            told = " ".join(filter(None, ["Required." if one["required"] else "", one.get("description", "")]))
            yield f"| `{one['name']}` | {one['in']} | {_kind(one['schema'])} | {told} |"
        yield ""
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        optional = "" if operation["requestBody"]["required"] else " It may be left out."
        yield f"Body: {_kind(schema)}.{optional}\n"
    yield f"```sh\n{_curl(method, path, operation)}\n```\n"
    for status, answer in operation["responses"].items():
        if "$ref" not in answer:
            yield from _answer(status, answer)
    errors = [status for status, answer in operation["responses"].items() if "$ref" in answer]
    yield f"Errors: {', '.join(errors)}.\n"


def _curl(method: str, path: str, operation: Mapping[str, Any]) -> str:
    given = {one["name"]: str(one["example"]) for one in operation.get("parameters", []) if "example" in one}
    in_query = [one["name"] for one in operation.get("parameters", []) if one["in"] == "query" and one["name"] in given]
    for name, value in given.items():
        path = path.replace(f"{{{name}}}", value)
    query = "&".join(f"{name}={given[name]}" for name in in_query)
    url = f"http://127.0.0.1:8080{path}{'?' if query else ''}{query}"
    flags = (
        " -N" if any("text/event-stream" in one.get("content", {}) for one in operation["responses"].values()) else ""
    )
    lines = [f"curl{flags}" + ("" if method == "GET" else f" -X {method}") + f" {shlex.quote(url)}"]
    if operation["security"]:
        token = "$REFRESH_TOKEN" if _needs(operation) == "a refresh token" else "$TOKEN"
        lines.append(f'-H "Authorization: Bearer {token}"')
    if "requestBody" in operation:
        body = json.dumps(operation["requestBody"]["content"]["application/json"]["example"], ensure_ascii=False)
        lines += ["-H 'Content-Type: application/json'", f"-d {shlex.quote(body)}"]
    return " \\\n  ".join(lines)


def _answer(status: str, answer: Mapping[str, Any]) -> Iterator[str]:
    contents = answer.get("content", {})
    if not contents:
        yield f"Answer {status}, without a body.\n"
    for media_type, content in contents.items():
        if media_type == "application/json":
            yield f"Answer {status}: {_kind(content['schema'])}\n"
            yield f"```json\n{json.dumps(content['example'], indent=2, ensure_ascii=False)}\n```\n"
        else:
            yield f"Answer {status}, `{media_type}`:\n\n```\n{content['example'].rstrip()}\n```\n"


def _object(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {name}\n"
    yield f"{schema.get('description', '')}\n"
    yield "| field | type | |\n|---|---|---|"
    required = schema.get("required", ())
    for field, part in schema.get("properties", {}).items():
        told = " ".join(filter(None, ["Required." if field in required else "", _described(part)]))
        yield f"| `{field}` | {_kind(part)} | {told} |"
    yield ""


def _described(schema: Mapping[str, Any]) -> str:
    inner = [one["description"] for one in schema.get("anyOf", ()) if "description" in one]
    text: str = schema.get("description") or " ".join(inner)
    return text


def _kind(schema: Mapping[str, Any]) -> str:
    """The type and its bounds, on one line."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{_anchor(name)})"
    if "anyOf" in schema or "oneOf" in schema:
        kinds = [_kind(one) for one in schema.get("anyOf") or schema["oneOf"]]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema.get("enum") or [schema["const"]])
    kind = schema.get("type", "any")
    if kind == "array":
        return f"array of {_kind(schema.get('items', {}))}{_bounds(schema, 'minItems', 'maxItems', ' items')}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_kind(schema['additionalProperties'])}"
    lengths = _bounds(schema, "minLength", "maxLength", " characters") + _bounds(schema, "minimum", "maximum", "")
    return f"{schema.get('format', kind)}{lengths}"


def _bounds(schema: Mapping[str, Any], least: str, most: str, unit: str) -> str:
    if most not in schema:
        return f" ({schema[least]} or more{unit})" if schema.get(least, 0) > 0 else ""
    if least in schema:
        return f" ({schema[least]} to {schema[most]}{unit})"
    above = f"above {schema['exclusiveMinimum']}, " if "exclusiveMinimum" in schema else ""
    return f" ({above}at most {schema[most]}{unit})"
