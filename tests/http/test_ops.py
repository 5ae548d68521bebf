"""Health and metrics."""

from __future__ import annotations

import errno
import sqlite3
import time
from contextlib import closing

import pytest
from sqlalchemy import text

from chatsvc.app import running_in
from chatsvc.store.database import Database
from tests.audit.test_faults import FaultyDisk


def test_with_a_model_all_is_well(client):
    for path in ("/healthz", "/readyz", "/livez"):
        answer = client.get(path)
        assert (answer.status_code, answer.json) == (200, {"status": "ok"})


def test_without_an_engine_it_lives_is_not_healthy_and_starts(bare_client):
    assert bare_client.get("/livez").status_code == 200
    healthy = bare_client.get("/healthz")
    assert healthy.status_code == 503
    assert healthy.json == {"status": "error", "reason": "the model is being loaded"}
    ready = bare_client.get("/readyz")
    assert (ready.status_code, ready.json["status"]) == (503, "starting")
    assert ready.headers["Retry-After"] == "5"


def test_a_drain_is_not_ready(bare_app, bare_client):
    running_in(bare_app).drain.begin(10)
    assert bare_client.get("/readyz").json["status"] == "draining"
    assert bare_client.get("/healthz").status_code == 503


def test_a_log_that_cannot_be_written_is_not_healthy(client, app):
    running_in(app).audit.close()
    assert client.get("/healthz").json["status"] == "error"
    assert client.get("/readyz").json["status"] == "error"
    assert client.get("/livez").status_code == 200


@pytest.mark.parametrize(("name", "code"), [("fdatasync", errno.EIO), ("write", errno.EIO), ("write", errno.ENOSPC)])
def test_what_is_wrong_with_the_logs_disk_is_said_without_its_path(bare_app, bare_client, caplog, name, code):
    disk = FaultyDisk(name, code, times=1_000_000)
    log = running_in(bare_app).audit
    segment = log._journal.mirror._leader()._segment
    segment._calls, disk.active = disk.calls(), True
    refused = bare_client.post("/login", json={"username": "alice", "password": "alice's long password"})
    assert (refused.status_code, refused.json["error"]["code"]) == (503, "audit_unavailable")
    for path in ("/healthz", "/readyz"):
        answer = bare_client.get(path)
        assert (answer.status_code, answer.json["status"]) == (503, "error")
        assert answer.json["reason"] == f"the audit log cannot be written: {log.problem()}"
        assert segment.path.name not in answer.text
        assert str(segment.path.parent) not in answer.text
    assert str(segment.path) in caplog.text


def health(client):
    answers = [client.get(path) for path in ("/healthz", "/readyz")]
    assert len({(answer.status_code, answer.json.get("reason")) for answer in answers}) == 1
    return answers[0].status_code, answers[0].json.get("reason")


def test_a_database_that_another_program_has_locked_is_not_healthy(app, client, wait_until):
    assert health(client) == (200, None)
    path = running_in(app).settings.home / "chatsvc.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        wait_until(lambda: health(client) == (503, "the database cannot be written"), what="503")
        assert client.get("/livez").status_code == 200
        other.execute("ROLLBACK")
    wait_until(lambda: health(client) == (200, None), what="recovery")


@pytest.mark.engine
def test_a_postgresql_that_takes_no_writes_is_not_healthy(postgres, make_app, wait_until):
    database = Database(postgres.url)
    try:
        app = make_app(CHATSVC_STORE__URL=postgres.url)
        client = app.test_client()
        wait_until(lambda: health(client) == (200, None), what="health")
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as operator:
            for is_read_only, state in (("on", (503, "the database cannot be written")), ("off", (200, None))):
                operator.execute(text(f"ALTER DATABASE postgres SET default_transaction_read_only = {is_read_only}"))
                running_in(app).guard.database.engine.dispose()  # as after a fail-over: new connections
                wait_until(lambda state=state: health(client) == state, what=str(state))
    finally:
        database.close()


def test_chats_that_all_fail_for_a_reason_of_ours_are_an_outage_and_one_is_none(app, client, login):
    headers, path = login(), running_in(app).settings.home / "chatsvc.db"

    def chat():
        return client.post("/chat", json={"query": "Hi", "max_tokens": 1}, headers=headers).status_code

    with closing(sqlite3.connect(path)) as operator:
        operator.execute("ALTER TABLE conversation_messages RENAME TO elsewhere")
        assert (chat(), health(client)) == (503, (200, None))
        operator.execute("ALTER TABLE elsewhere RENAME TO conversation_messages")
        assert chat() == 200
        operator.execute("ALTER TABLE conversation_messages RENAME TO elsewhere")
        assert (chat(), chat(), health(client)) == (503, 503, (200, None))
        assert client.post("/chat", json={"query": "x " * 9000}, headers=headers).status_code == 400  # not our fault
        assert chat() == 503
        reason = "all of the last chats failed with store_unavailable; the log says why"
        assert health(client) == (503, reason)
        operator.execute("ALTER TABLE elsewhere RENAME TO conversation_messages")
        assert (chat(), health(client)) == (200, (200, None))


def test_health_takes_milliseconds(client):
    client.get("/healthz")
    times = []
    for _ in range(30):
        started = time.perf_counter()
        client.get("/healthz")
        times.append(time.perf_counter() - started)
    assert sorted(times)[3] < 0.1  # a busy machine delays some of them


def test_metrics_need_their_scope(bare_client, login):
    assert bare_client.get("/metrics").status_code == 401
    assert bare_client.get("/metrics", headers=login("alice", at=bare_client)).status_code == 403
    answer = bare_client.get("/metrics", headers=login("admin", at=bare_client))
    assert answer.status_code == 200
    assert answer.mimetype == "text/plain"
    assert "chatsvc_sequences_running 0.0" in answer.text
    assert "chatsvc_sequences_waiting 0.0" in answer.text
    assert "chatsvc_engine_ready 0.0" in answer.text


def test_a_scraper_network_needs_no_token_but_must_be_listed(make_app):
    app = make_app(
        with_model=False,
        CHATSVC_GUARD__SCRAPER_NETWORKS='["127.0.0.2/32", "192.0.2.0/24"]',
        CHATSVC_GUARD__ALLOWED_NETWORKS='["127.0.0.0/8"]',
    )
    client = app.test_client()
    assert client.get("/metrics", environ_overrides={"REMOTE_ADDR": "127.0.0.2"}).status_code == 200
    assert client.get("/metrics", environ_overrides={"REMOTE_ADDR": "127.0.0.1"}).status_code == 401
    assert client.get("/me", environ_overrides={"REMOTE_ADDR": "127.0.0.2"}).status_code == 401
    assert client.get("/metrics", environ_overrides={"REMOTE_ADDR": "192.0.2.1"}).status_code == 403


def test_requests_are_counted_by_route_not_by_path(bare_client, login):
    headers = login("admin", at=bare_client)
    for path in ("/conversations/a", "/conversations/b", "/nowhere/1", "/nowhere/2"):
        bare_client.get(path, headers=headers, buffered=True)
    text = bare_client.get("/metrics", headers=headers).text
    assert (
        'chatsvc_http_requests_total{method="GET",route="/conversations/<string(maxlength=64):conversation_id>",status="404"} 2.0'
        in text
    )
    assert 'chatsvc_http_requests_total{method="GET",route="-",status="404"} 2.0' in text


@pytest.mark.parametrize("method", ["BREW", "X" * 200])
def test_a_made_up_method_does_not_become_a_label(bare_client, login, method):
    bare_client.open("/nowhere", method=method, buffered=True)
    text = bare_client.get("/metrics", headers=login("admin", at=bare_client)).text
    assert method not in text
