"""The HTML page that a browser gets instead of JSON when a page it opens is refused.

It is self-contained: a browser refused by address could load neither a style sheet nor a script. It is in both
languages, the browser's preferred one first. Knows nothing about which status an error has.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from html import escape
from string import Template

from flask import Response, request

from chatsvc.errors import ChatsvcError
from chatsvc.http.pages import views as ui
from chatsvc.http.wire import context

_STYLE = """
:root { color-scheme: light dark; }
body { margin: 0; font: 16px/1.6 system-ui, "Noto Sans SC", "PingFang SC", "Microsoft YaHei", sans-serif; }
main { max-width: 34rem; margin: 12vh auto 0; padding: 0 1.5rem; }
h1 { font-size: 1.3rem; margin: 0 0 .25rem; }
p { margin: 0 0 1rem; overflow-wrap: anywhere; }
section + section { margin-top: 2rem; }
.detail { margin-top: 2.5rem; font-size: .85rem; opacity: .7; }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS = {
    **ui.ISOLATION,
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'none'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
}
_PAGE = Template(
    f"""<!doctype html>
<html lang="$lang">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>chatsvc: $status</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
$sections
<p class="detail">$detail</p>
</main>
</body>
</html>
"""
)
_LANGUAGE_TAGS = {"en": "en", "zh": "zh-CN"}
_TITLES = {"en": "This page cannot be shown", "zh": "无法显示此页面"}
_RETRY = {"en": " Try again in {seconds} s.", "zh": "请在 {seconds} 秒后重试。"}
_TO_THE_CHAT = {"en": "To the chat page", "zh": "前往聊天页面"}


def wants_page() -> bool:
    """Whether a browser is navigating here for a person. Programs get JSON.

    Browsers prefer ``text/html`` when they navigate; a page's ``fetch`` and most programs send ``*/*``.
    ``Sec-Fetch-Mode`` would be exact, but browsers send it only over https and to localhost. A request with a
    credential gets JSON whatever its ``Accept``: no browser sends one when it navigates.
    """
    if request.method not in {"GET", "HEAD"} or "Authorization" in request.headers or "X-Api-Key" in request.headers:
        return False
    accepted = request.accept_mimetypes
    is_preferred = "text/html" in accepted.values() and accepted["text/html"] > accepted["application/json"]
    return is_preferred and request.headers.get("Sec-Fetch-Mode", "navigate") == "navigate"


def show_as_page(response: Response, error: ChatsvcError) -> None:
    """Replace an answer's JSON by the page; its status and headers stay."""
    first = request.accept_languages.best_match(["en", "zh"], default="en")
    # A missing scope has the same code, but without a credential only the address can have been refused.
    text_key = "address_not_listed" if error.code == "permission_denied" else error.code
    texts = _texts().get(text_key or "", {"en": error.message, "zh": error.message})
    retry_after_s = response.headers.get("Retry-After")
    detail = [str(response.status_code), error.code, context.current().id if context.is_begun() else None]
    html = _PAGE.substitute(
        lang=_LANGUAGE_TAGS[first],
        status=response.status_code,
        sections="\n".join(
            _section(language, texts[language], retry_after_s, with_link=text_key != "address_not_listed")
            for language in sorted(_LANGUAGE_TAGS, key=lambda language: language != first)
        ),
        detail=escape(" · ".join(filter(None, detail))),
    )
    response.headers.update(_HEADERS)
    response.content_type = "text/html; charset=utf-8"
    response.set_data(html)


def _section(language: str, text: str, retry_after_s: str | None, *, with_link: bool) -> str:
    lines = [f'<section lang="{_LANGUAGE_TAGS[language]}">', f"<h1>{_TITLES[language]}</h1>"]
    retry = "" if retry_after_s is None else _RETRY[language].format(seconds=retry_after_s)
    lines.append(f"<p>{escape(text + retry)}</p>")
    if with_link:
        lines.append(f'<p><a href="/">{_TO_THE_CHAT[language]}</a></p>')
    return "\n".join([*lines, "</section>"])


@cache
def _texts() -> dict[str, dict[str, str]]:
    return ui.error_texts()
