"""``/`` and ``/docs``: two pages whose files are part of the package. No other file is ever served.

The pages load nothing from other hosts and run no inline script; the Content-Security-Policy below enforces it.
Knows nothing about what the pages do.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from typing import ClassVar

from flask import Response, request

from chatsvc.errors import NotFound
from chatsvc.guard.principal import PUBLIC
from chatsvc.http.wire.routing import Operation, requires, route

_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# Headers of every page, besides its Content-Security-Policy.
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
    """One file with its headers."""

    content: bytes
    content_type: str
    etag: str


class PageViews:
    """The views. ``single_sign_on``: the page offers login at the identity provider."""

    TAG: ClassVar = "pages"

    def __init__(self, *, single_sign_on: bool = False) -> None:
        self._pages = read_pages()
        if single_sign_on:
            html = self._pages["index.html"].content.replace(b'data-sso="no"', b'data-sso="yes"')
            self._pages["index.html"] = _page(html, "html")

    @route("GET", "/")
    @requires(PUBLIC)
    @Operation(texts={"text/html": "<!doctype html>…"})
    def chat_page(self) -> Response:
        """The chat page."""
        return _send(self._pages["index.html"])

    @route("GET", "/docs")
    @requires(PUBLIC)
    @Operation(texts={"text/html": "<!doctype html>…"})
    def docs_page(self) -> Response:
        """The OpenAPI document as a page."""
        return _send(self._pages["docs.html"])

    @route("GET", "/assets/<name>")
    @requires(PUBLIC)
    @Operation(texts={"*/*": "…"}, path={"name": "chat.js"})
    def asset(self, name: str) -> Response:
        """A file of a page."""
        if name not in self._pages or name.endswith(".html"):
            raise NotFound
        return _send(self._pages[name])


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
