"""What is around every request: ids, addresses, denials, the access line."""

from __future__ import annotations

import json
import logging

import pytest

from chatsvc.app import running_in
from chatsvc.http.wire.hooks import request_id
from chatsvc.logs import JsonLines


@pytest.mark.parametrize("good", ["a", "A-b.c_9", "x" * 128])
def test_a_harmless_request_id_is_kept(bare_client, good):
    assert bare_client.get("/livez", headers={"X-Request-Id": good}).headers["X-Request-Id"] == good


@pytest.mark.parametrize("bad", ["", " ", "x" * 129, "a b", "a\tb", "ä", "<script>", "a,b", "{}"])
def test_any_other_request_id_is_replaced(bare_client, bad):
    answer = bare_client.get("/livez", headers={"X-Request-Id": bad})
    assert answer.headers["X-Request-Id"] != bad
    assert len(answer.headers["X-Request-Id"]) == 32


def test_a_newline_does_not_end_a_request_id():
    assert request_id("abc\n", lambda: "new") == "new"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/livez", 200),
        ("GET", "/nowhere", 404),
        ("DELETE", "/chat", 405),
        ("POST", "/chat", 401),
        ("GET", "/readyz", 503),
    ],
)
def test_every_answer_has_an_id_and_is_not_kept_or_sniffed(bare_client, method, path, status):
    answer = bare_client.open(path, method=method)
    assert answer.status_code == status
    assert answer.headers["X-Request-Id"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"


def test_an_address_off_the_list_is_403_whatever_it_forwards(bare_client):
    for forged in (None, "127.0.0.1", '"', "", "127.0.0.1, 127.0.0.1"):
        headers = (
            {}
            if forged is None
            else {"X-Forwarded-For": forged, "X-Real-IP": "127.0.0.1", "Forwarded": "for=127.0.0.1"}
        )
        answer = bare_client.get("/livez", headers=headers, environ_overrides={"REMOTE_ADDR": "198.51.100.7"})
        assert answer.status_code == 403
        assert answer.json["error"]["type"] == "permission_error"


@pytest.mark.parametrize("forwarded", [None, "", '"', "x", "127.0.0.1:80", "127.0.0.01", "1.2.3.4,", "[::1]"])
def test_the_proxy_without_one_parsable_address_is_403(bare_client, forwarded):
    headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
    answer = bare_client.get("/livez", headers=headers, environ_overrides={"REMOTE_ADDR": ""})
    assert answer.status_code == 403


def test_the_proxy_with_a_listed_address_is_let_through(bare_client):
    answer = bare_client.get("/livez", headers={"X-Forwarded-For": "127.0.0.1"}, environ_overrides={"REMOTE_ADDR": ""})
    assert answer.status_code == 200


@pytest.fixture
def lines(caplog):
    """The access lines as they would be written."""
    caplog.set_level(logging.INFO, logger="chatsvc.access")
    return lambda: [json.loads(JsonLines().format(r)) for r in caplog.records if r.name == "chatsvc.access"]


def test_the_access_line_tells_who_what_and_how(bare_client, login, lines):
    headers = login("alice", at=bare_client)
    bare_client.get("/me?secret=1", headers={**headers, "X-Request-Id": "abc"}, buffered=True)
    line = lines()[-1]
    assert line["request_id"] == "abc"
    assert (line["actor"], line["address"], line["method"], line["path"], line["status"]) == (
        "alice",
        "127.0.0.1",
        "GET",
        "/me",
        200,
    )
    assert line["duration_ms"] >= 0


def test_the_access_line_of_an_error_has_its_code_and_no_secret(bare_client, login, lines, caplog):
    headers = login("alice", at=bare_client)
    token = headers["Authorization"].removeprefix("Bearer ")
    bare_client.post("/chat", json={"query": "canary-prompt", "password": "canary"}, headers=headers, buffered=True)
    bare_client.get(f"/{token}", buffered=True)
    assert [line["code"] for line in lines()[-2:]] == ["unknown_field", "not_found"]
    written = "".join(JsonLines().format(record) for record in caplog.records)
    assert "canary" not in written
    assert token not in written


def test_anonymous_denials_are_counted_in_the_audit_log(bare_app, bare_client):

    for _ in range(3):
        bare_client.get("/me")
    bare_client.get("/me", environ_overrides={"REMOTE_ADDR": "198.51.100.7"})
    running_in(bare_app).audit.close()
    text = "".join(
        path.read_text() for path in running_in(bare_app).settings.audit_directory.rglob("*") if path.is_file()
    )
    assert "198.51.100.7" in text
    assert '"denied"' in text


def test_denials_stay_denials_when_the_log_cannot_be_written(bare_app, bare_client):

    running_in(bare_app).audit.close()
    assert bare_client.get("/me").status_code == 401
    assert bare_client.get("/me", environ_overrides={"REMOTE_ADDR": "198.51.100.7"}).status_code == 403
    assert bare_client.get("/livez").status_code == 200
    answer = bare_client.get("/healthz")
    assert answer.status_code == 503
    assert "audit" in answer.json["reason"]


def test_head_gives_what_get_gives_without_the_body(bare_client):
    answer = bare_client.head("/livez")
    assert answer.status_code == 200
    assert answer.get_data() == b""
