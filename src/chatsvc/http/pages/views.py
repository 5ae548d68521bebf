"""``/`` and ``/docs``: two pages whose files travel inside the package. No file of any other name is ever read.

The pages load nothing from elsewhere and run no inline script; the policy below makes the browser hold them to it.
Knows nothing about what the pages do.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import resources

from flask import Blueprint, Response, request

from chatsvc.errors import NotFound
from chatsvc.guard.principal import PUBLIC
from chatsvc.http.wire.routing import requires

_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# What every page of ours sends beside a content security policy.
ISOLATION = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "X-Frame-Options": "DENY",
}
_HEADERS = {
    **ISOLATION,
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
}
_FILES = resources.files("chatsvc.http.pages").joinpath("static")


@dataclass(frozen=True, slots=True)
class Page:
    """One file, as it is sent."""

    content: bytes
    content_type: str
    etag: str


def blueprint(*, single_sign_on: bool = False) -> Blueprint:
    """The routes. ``single_sign_on``: the page offers to log in by the identity provider."""
    routes = Blueprint("ui", __name__)
    pages = read_pages()
    if single_sign_on:
        pages["index.html"] = _page(pages["index.html"].content.replace(b'data-sso="no"', b'data-sso="yes"'), "html")

    @routes.get("/")
    @requires(PUBLIC)
    def chat_page() -> Response:
        return _send(pages["index.html"])

    @routes.get("/docs")
    @requires(PUBLIC)
    def docs_page() -> Response:
        return _send(pages["docs.html"])

    @routes.get("/assets/<name>")
    @requires(PUBLIC)
    def asset(name: str) -> Response:
        if name not in pages or name.endswith(".html"):
            raise NotFound
        return _send(pages[name])

    return routes


def read_pages() -> dict[str, Page]:
    """Every file of the pages, once, and ``errors.js``: the sentences for errors as a module for scripts."""
    found = {}
    for file in _FILES.iterdir():
        kind = file.name.rpartition(".")[2]
        if kind in _TYPES:
            found[file.name] = _page(file.read_bytes(), kind)
    module = f"export const ERRORS = {json.dumps(error_texts(), ensure_ascii=False)};\n"
    found["errors.js"] = _page(module.encode(), "js")
    return found


def error_texts() -> dict[str, dict[str, str]]:
    """A sentence for people (``en``, ``zh``) for every error code of ``docs/reference/errors.md``."""
    texts: dict[str, dict[str, str]] = json.loads(_FILES.joinpath("errors.json").read_bytes())
    return texts


def _page(content: bytes, kind: str) -> Page:
    return Page(content, _TYPES[kind], hashlib.sha256(content).hexdigest()[:32])


def _send(page: Page) -> Response:
    response = Response(page.content, content_type=page.content_type, headers=_HEADERS)
    response.set_etag(page.etag)
    response.make_conditional(request)
    return response
