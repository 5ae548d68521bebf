"""Pages of other origins: a listed one may call, its browser asks first without a token, and the address comes before all."""

from __future__ import annotations

import pytest

ORIGIN = "https://intranet.example.org"
ASKS = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "POST",
    # what the official JavaScript client sends from a page
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang,x-stainless-retry-count",
}


@pytest.fixture
def pages(make_app):
    """A client of an application that lists one origin."""
    origins = f'["{ORIGIN}", "http://localhost:3000"]'
    return make_app(with_model=False, CHATSVC_SERVER__CORS_ORIGINS=origins).test_client()


def cors_headers(answer):
    return {name for name, _ in answer.headers if name.startswith("Access-Control-")}


def test_by_default_no_page_of_another_origin_is_let_in(bare_client, login):
    answer = bare_client.get("/me", headers={**login("alice", at=bare_client), "Origin": ORIGIN})
    assert answer.status_code == 200
    assert cors_headers(answer) == set()
    assert "Vary" not in answer.headers
    assert bare_client.options("/v1/chat/completions", headers=ASKS).status_code == 401


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/chat/completions/", "/chat/stream"])
def test_a_browser_of_a_listed_page_is_told_what_it_may_send(pages, path):
    answer = pages.options(path, headers=ASKS)
    assert answer.status_code == 204
    assert answer.get_data() == b""
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert set(answer.headers["Access-Control-Allow-Methods"].split(", ")) == {"OPTIONS", "POST"}
    assert answer.headers["Access-Control-Allow-Headers"].replace(" ", "") == ASKS["Access-Control-Request-Headers"]
    assert "Access-Control-Allow-Credentials" not in answer.headers
    assert "Origin" in answer.headers["Vary"]


def test_a_page_cannot_say_an_address_nor_break_a_header(pages):
    asked = "x-forwarded-for, forwarded, x-real-ip, authorization, b\u00e4d, " + "a" * 65
    answer = pages.options("/chat", headers={**ASKS, "Access-Control-Request-Headers": asked})
    assert answer.headers["Access-Control-Allow-Headers"] == "authorization"


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "", f"{ORIGIN}.evil.example", f"{ORIGIN}:444", ORIGIN.upper(), f"{ORIGIN}, x"],
)
def test_another_page_learns_nothing(pages, login, origin):
    answer = pages.options("/chat", headers={**ASKS, "Origin": origin})
    assert answer.status_code == 401
    assert cors_headers(answer) == set()
    assert cors_headers(pages.get("/me", headers={**login("alice", at=pages), "Origin": origin})) == set()


def test_the_address_comes_first(pages):
    answer = pages.options("/chat", headers=ASKS, environ_overrides={"REMOTE_ADDR": "192.0.2.1"})
    assert answer.status_code == 403
    assert cors_headers(answer) == set()


def test_a_preflight_is_no_way_round_the_token(pages):
    asks_by_get = {"Origin": ORIGIN, "Access-Control-Request-Method": "GET"}
    assert pages.get("/me", headers=asks_by_get).status_code == 401
    assert pages.head("/me", headers=asks_by_get).status_code == 401
    assert pages.options("/me", headers={"Origin": ORIGIN}).status_code == 401  # no preflight: it names no method
    assert pages.options("/nowhere", headers=ASKS).status_code == 404


def test_a_listed_page_reads_answers_and_errors(pages, login):
    for headers, status in ((login("alice", at=pages), 200), ({}, 401)):
        answer = pages.get("/me", headers={**headers, "Origin": ORIGIN})
        assert answer.status_code == status
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert "x-ignored-parameters" in answer.headers["Access-Control-Expose-Headers"]
        assert "Access-Control-Allow-Credentials" not in answer.headers
    # what is not for pages depends on the origin all the same, and a cache must know
    assert "Origin" in pages.get("/livez").headers["Vary"]
