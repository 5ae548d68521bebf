"""A browser that is refused shows a page; a program that is refused reads JSON."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest

from chatsvc.http.pages import views as ui

# As the browsers send them when a person opens an address.
CHROMIUM = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8"
FIREFOX = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
OUTSIDE = {"REMOTE_ADDR": "198.51.100.7"}
ERRORS = Path(__file__).parents[2] / "docs" / "reference" / "errors.md"


@pytest.mark.parametrize("accept", [CHROMIUM, FIREFOX, "text/html"])
@pytest.mark.parametrize("path", ["/", "/docs", "/me", "/healthz", "/nothing"])
def test_a_browser_refused_by_address_sees_a_page_in_both_languages(bare_client, accept, path):
    answer = bare_client.get(path, headers={"Accept": accept}, environ_overrides=OUTSIDE)
    assert (answer.status_code, answer.content_type) == (403, "text/html; charset=utf-8")
    assert "guard.allowed_networks" in answer.text
    assert "不在本服务的允许列表中" in answer.text
    assert answer.headers["X-Request-Id"] in answer.text


def test_the_page_keeps_status_and_headers_and_runs_nothing(bare_client):
    page = bare_client.get("/me", headers={"Accept": CHROMIUM})
    plain = bare_client.get("/me")
    assert page.status_code == plain.status_code == 401
    for name, value in plain.headers:
        if name not in {"Content-Type", "Content-Length", "X-Request-Id"}:
            assert page.headers[name] == value
    policy = page.headers["Content-Security-Policy"]
    (style,) = re.findall(r"<style>(.*?)</style>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}';" in policy
    assert "frame-ancestors 'none'" in policy
    assert page.headers["X-Frame-Options"] == "DENY"
    assert not re.search(r"<script|\bon\w+=|style=|src=|https?://|javascript:", page.text)


@pytest.mark.parametrize(
    ("preferred", "first"), [("zh-CN,zh;q=0.9", "zh-CN"), ("en-US", "en"), ("fr", "en"), ("", "en")]
)
def test_the_language_that_the_browser_prefers_comes_first(bare_client, preferred, first):
    answer = bare_client.get("/nothing", headers={"Accept": CHROMIUM, "Accept-Language": preferred})
    assert answer.status_code == 404
    assert re.findall(r'lang="([\w-]+)"', answer.text)[:2] == [first, first]


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", {}),
        ("GET", {"Accept": "*/*"}),
        ("GET", {"Accept": "application/json"}),
        ("GET", {"Accept": "application/json, text/plain, */*"}),
        ("GET", {"Accept": "application/json, text/html"}),
        ("GET", {"Accept": "text/html;q=0.5, application/json"}),
        ("GET", {"Accept": "text/*"}),
        ("GET", {"Accept": "text/html;q=x, ,;"}),
        ("GET", {"Accept": "*/*", "Sec-Fetch-Mode": "cors"}),
        ("GET", {"Accept": CHROMIUM, "Sec-Fetch-Mode": "cors"}),
        ("GET", {"Accept": "text/html, image/gif, image/jpeg, */*; q=.2", "Authorization": "Bearer csk_x_y"}),  # Java's
        ("GET", {"Accept": CHROMIUM, "X-Api-Key": "csk_x_y"}),
        ("POST", {"Accept": CHROMIUM}),
    ],
)
def test_a_program_reads_json(bare_client, method, headers):
    answer = bare_client.open("/me", method=method, headers=headers)
    assert answer.mimetype == "application/json"
    assert set(json.loads(answer.text)["error"]) == {"message", "type", "param", "code"}
    assert "Content-Security-Policy" not in answer.headers


def test_an_address_typed_by_a_stranger_is_not_on_the_page(bare_client):
    answer = bare_client.get("/<script>alert(1)</script>?q=<b>", headers={"Accept": CHROMIUM, "X-Request-Id": "<b>"})
    assert answer.status_code == 404
    assert "<script" not in answer.text
    assert "<b>" not in answer.text


def test_head_has_no_body(bare_client):
    answer = bare_client.head("/me", headers={"Accept": CHROMIUM})
    assert (answer.status_code, answer.text) == (401, "")


def test_every_code_of_the_documentation_has_a_sentence_in_both_languages():
    rows = [line.split("|") for line in ERRORS.read_text(encoding="utf-8").splitlines() if "|" in line]
    codes = {code for row in rows for code in re.findall(r"`([a-z_]+)`", row[3])}
    texts = ui.error_texts()
    assert {"invalid_token", "queue_full"} <= codes <= set(texts)
    for code, sentences in texts.items():
        assert set(sentences) == {"en", "zh"}, code
        assert re.search(r"[.]$", sentences["en"]), code
        assert re.search(r"[\u4e00-\u9fff].*。$", sentences["zh"]), code
