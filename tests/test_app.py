"""The composition root: what is opened is closed, also when the start fails half-way."""

from __future__ import annotations

import pytest

from chatsvc.app import create_app, running_in
from chatsvc.errors import AuditUnavailable, StoreUnavailable
from chatsvc.settings.load import load


def settings(home, **more):
    return load({"CHATSVC_HOME": str(home), "CHATSVC_GUARD__ALLOWED_NETWORKS": '["127.0.0.1"]', **more})


def test_a_start_that_fails_lets_go_of_the_log(tmp_path):
    nowhere = f"sqlite:///{tmp_path / 'no' / 'such' / 'directory' / 'chatsvc.db'}"
    with pytest.raises(StoreUnavailable):
        create_app(settings(tmp_path, CHATSVC_STORE__URL=nowhere))
    running_in(create_app(settings(tmp_path))).close()


def test_two_processes_do_not_share_a_log(tmp_path):
    first = running_in(create_app(settings(tmp_path)))
    try:
        with pytest.raises(AuditUnavailable):
            create_app(settings(tmp_path))
    finally:
        first.close()


def test_what_is_over_ones_limits_is_in_the_log(make_app, login):
    app = make_app(with_model=False, CHATSVC_LIMITS__REQUESTS_PER_MINUTE="1")
    client = app.test_client()
    headers = login("alice", at=client)
    for _ in range(3):
        client.post("/chat", json={"query": "x"}, headers=headers)
    running = running_in(app)
    running.audit.close()
    text = "".join(path.read_text() for path in running.settings.audit_directory.rglob("*.jsonl"))
    assert "rate_limit_exceeded" in text
