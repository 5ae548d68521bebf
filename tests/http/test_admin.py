"""Administration over HTTP: every act needs scope admin and is audited with before and after."""

from __future__ import annotations

import json

import pytest

from chatsvc.app import running_in

PASSWORD = "a long enough password"


@pytest.fixture
def client(bare_client):
    return bare_client


@pytest.fixture
def admin(login, client):
    return login("admin", at=client)


@pytest.fixture
def alice(login, client):
    return login("alice", at=client)


@pytest.fixture
def call(client, admin):
    """``call("POST", path, body)``: the status and the JSON, as the administrator."""

    def do(method, path, body=None):
        answer = client.open(f"/admin{path}", method=method, json=body, headers=admin)
        return answer.status_code, answer.get_json(silent=True)

    return do


@pytest.fixture
def audited(bare_app):
    """``audited(action)``: the ``end`` records of an action."""

    def find(action):
        directory = running_in(bare_app).settings.audit_directory
        lines = [line for path in directory.rglob("*") if path.is_file() for line in path.read_bytes().split(b"\n")]
        found = [json.loads(line) for line in lines if line.startswith(b"{")]
        return [record for record in found if record.get("action") == action and record["stage"] == "end"]

    return find


ROUTES = [
    ("GET", "/accounts"),
    ("POST", "/accounts"),
    ("GET", "/accounts/alice"),
    ("PATCH", "/accounts/alice"),
    ("DELETE", "/accounts/alice"),
    ("GET", "/limits"),
    ("PUT", "/limits/alice"),
    ("GET", "/keys"),
    ("POST", "/keys"),
    ("PATCH", "/keys/x"),
    ("POST", "/keys/x/rotate"),
    ("DELETE", "/keys/x"),
    ("POST", "/signing-keys/rotate"),
    ("GET", "/model"),
    ("GET", "/sessions"),
    ("DELETE", "/sessions/x"),
]


def test_only_an_administrator_may(client, alice):
    for method, path in ROUTES:
        assert client.open(f"/admin{path}", method=method, json={}).status_code == 401, path
        assert client.open(f"/admin{path}", method=method, json={}, headers=alice).status_code == 403, path


def test_accounts_are_made_listed_changed_and_removed(call, client, audited):
    status, made = call("POST", "/accounts", {"name": "carol", "password": PASSWORD, "roles": ["user"]})
    assert (status, made["roles"]) == (201, ["user"])
    assert client.post("/login", json={"username": "carol", "password": PASSWORD}).status_code == 200
    assert "carol" in [account["name"] for account in call("GET", "/accounts")[1]["accounts"]]
    assert call("GET", "/accounts/carol")[1] == made

    assert call("PATCH", "/accounts/carol", {"roles": ["viewer"]})[1]["roles"] == ["viewer"]
    assert call("PATCH", "/accounts/carol", {"disabled": True})[1]["disabled"]
    assert client.post("/login", json={"username": "carol", "password": PASSWORD}).status_code == 401
    body = {"disabled": False, "password": "another long password"}
    assert not call("PATCH", "/accounts/carol", body)[1]["disabled"]
    assert client.post("/login", json={"username": "carol", "password": body["password"]}).status_code == 200

    assert call("DELETE", "/accounts/carol")[0] == 204
    assert call("GET", "/accounts/carol")[0] == 404
    changes = json.dumps(audited("admin.account.change"))
    assert "before" in changes
    assert "viewer" in changes
    assert "long password" not in json.dumps([audited("admin.account.create"), changes])


def test_pages_of_accounts_follow_each_other(call):
    first = call("GET", "/accounts?limit=2")[1]["accounts"]
    rest = call("GET", f"/accounts?limit=2&after={first[-1]['name']}")[1]["accounts"]
    assert [account["name"] for account in first + rest] == ["admin", "alice", "bob"]


def test_a_changed_password_ends_the_sessions_of_the_account(call, client, alice):
    assert call("PATCH", "/accounts/alice", {"password": PASSWORD})[0] == 200
    assert client.get("/me", headers=alice).status_code == 401


def test_roles_take_effect_on_tokens_that_are_out(call, client, alice):
    call("PATCH", "/accounts/alice", {"roles": ["admin"]})
    assert client.get("/admin/accounts", headers=alice).status_code == 200


REFUSED = [
    ("POST", "/accounts", {"name": "alice", "password": PASSWORD}, 409),
    ("POST", "/accounts", {"name": "a b", "password": PASSWORD}, 400),
    ("POST", "/accounts", {"name": "carol", "password": "short"}, 400),
    ("POST", "/accounts", {"name": "carol", "password": PASSWORD, "roles": ["root"]}, 400),
    ("POST", "/accounts", {"name": "carol"}, 400),
    ("PATCH", "/accounts/nobody", {"roles": []}, 404),
    ("PATCH", "/accounts/alice", {"password": "short"}, 400),
    ("PATCH", "/accounts/alice", {"roles": ["root"]}, 400),
    ("PATCH", "/accounts/alice", {"name": "eve"}, 400),
    ("DELETE", "/accounts/nobody", None, 404),
    ("DELETE", "/accounts/%00", None, 404),
    ("GET", "/accounts?limit=0", None, 400),
    ("GET", "/accounts?limit=x", None, 400),
    ("GET", "/accounts?limit=1000000000", None, 400),
    ("GET", f"/accounts?limit=000000001{'9' * 20}", None, 400),
    ("GET", f"/accounts?limit={'9' * 5000}", None, 400),
    ("GET", "/accounts?limit=1&limit=2", None, 400),
    ("GET", "/accounts?after=%00", None, 400),
    ("GET", "/keys?account=alice&account=bob", None, 400),
    ("PUT", "/limits/nobody", {}, 404),
    ("PUT", "/limits/alice", {"tokens_per_day": 0}, 400),
    ("PUT", "/limits/alice", {"tokens_per_day": 10**30}, 400),
    ("POST", "/keys", {"account": "nobody", "name": "ci", "scopes": ["chat"]}, 404),
    ("POST", "/keys", {"account": "alice", "name": "ci", "scopes": ["fly"]}, 400),
    ("POST", "/keys", {"account": "alice", "name": "ci", "scopes": ["admin"]}, 409),
    ("POST", "/keys", {"account": "alice", "name": "ci", "scopes": []}, 400),
    ("PATCH", "/keys/nothere", {"tokens_per_day": 5}, 404),
    ("PATCH", "/keys/nothere", {"tokens_per_day": 0}, 400),
    ("PATCH", "/keys/nothere", {"expires_days": 0}, 400),
    ("PATCH", "/keys/nothere", {"scopes": ["chat"]}, 400),
    ("POST", "/keys/nothere/rotate", None, 404),
    ("POST", "/keys/nothere/rotate", {"grace_s": -1}, 400),
    ("DELETE", "/keys/nothere", None, 404),
    ("DELETE", "/sessions/nothere", None, 404),
    ("GET", "/nothing", None, 404),
    ("PUT", "/accounts", None, 405),
]


def test_what_cannot_be_done_says_why(call):
    for method, path, body, status in REFUSED:
        answered, json_body = call(method, path, body)
        assert answered == status, (method, path, body)
        assert set(json_body["error"]) == {"message", "type", "param", "code"}


def test_limits_are_set_and_shown(call, client, alice, audited):
    body = {"requests_per_minute": 7, "tokens_per_day": 70}
    assert call("PUT", "/limits/alice", body)[1]["tokens_per_day"] == 70
    shown = call("GET", "/limits")[1]
    assert shown["accounts"] == {"alice": {**body, "max_concurrent": None}}
    assert shown["default"]["requests_per_minute"] == 600
    assert client.get("/me", headers=alice).json["limits"]["requests_per_minute"] == 7
    call("PUT", "/limits/alice", {})
    assert call("GET", "/limits")[1]["accounts"] == {}
    first, second = (record["details"] for record in audited("admin.account.limits"))
    assert (first["before"]["tokens_per_day"], first["after"]["tokens_per_day"]) == (None, 70)
    assert (second["before"], second["after"]["tokens_per_day"]) == (first["after"], None)


def test_keys_are_made_rotated_and_revoked(call, client, audited):
    body = {"account": "alice", "name": "ci", "scopes": ["chat"], "expires_days": 30, "tokens_per_day": 9}
    body |= {"requests_per_minute": 8, "max_concurrent": 2}
    status, made = call("POST", "/keys", body)
    assert status == 201
    limits = client.get("/me", headers={"X-Api-Key": made["key"]}).json["limits"]
    assert limits == {"requests_per_minute": 8, "tokens_per_day": 9, "concurrent_requests": 2}
    assert [key["id"] for key in call("GET", "/keys?account=alice")[1]["keys"]] == [made["id"]]

    rotated = call("POST", f"/keys/{made['id']}/rotate", {"grace_s": 0})[1]
    assert client.get("/me", headers={"X-Api-Key": made["key"]}).status_code == 401
    assert client.get("/me", headers={"X-Api-Key": rotated["key"]}).status_code == 200
    assert call("POST", f"/keys/{made['id']}/rotate")[0] == 200

    assert call("DELETE", f"/keys/{made['id']}")[0] == 204
    assert client.get("/me", headers={"X-Api-Key": rotated["key"]}).status_code == 401
    secrets = [key.split("_", 2)[2] for key in (made["key"], rotated["key"])]
    text = json.dumps([audited(f"admin.key.{verb}") for verb in ("create", "rotate", "revoke")])
    assert made["id"] in text
    assert not any(secret in text for secret in secrets)


def test_the_limits_of_a_key_are_changed_and_what_is_left_out_stays(call, client, audited):
    body = {"account": "alice", "name": "ci", "scopes": ["chat"], "requests_per_minute": 8, "max_concurrent": 2}
    made = call("POST", "/keys", body)[1]

    def limits_of_the_key():
        return client.get("/me", headers={"X-Api-Key": made["key"]}).json["limits"]

    own = limits_of_the_key()
    status, changed = call("PATCH", f"/keys/{made['id']}", {"tokens_per_day": 9, "max_concurrent": None})
    assert (status, changed["requests_per_minute"], changed["tokens_per_day"]) == (200, 8, 9)
    assert limits_of_the_key()["tokens_per_day"] == 9
    assert limits_of_the_key()["concurrent_requests"] > own["concurrent_requests"] == 2

    assert call("PATCH", f"/keys/{made['id']}", {"expires_days": 0.5})[1]["expires_at"] > made["created_at"]
    assert client.get("/me", headers={"X-Api-Key": made["key"]}).json["expires_at"]
    assert call("PATCH", f"/keys/{made['id']}", {})[1]["expires_at"]
    assert call("PATCH", f"/keys/{made['id']}", {"expires_days": None})[1]["expires_at"] is None
    first = audited("admin.key.limits")[0]["details"]
    assert (first["before"]["tokens_per_day"], first["after"]["tokens_per_day"]) == (None, 9)
    assert (first["before"]["max_concurrent"], first["after"]["max_concurrent"]) == (2, None)
    assert made["key"].split("_", 2)[2] not in json.dumps(audited("admin.key.limits"))


def test_who_is_in_is_listed_and_one_session_can_be_ended(call, client, alice, audited):
    sessions = call("GET", "/sessions?account=alice")[1]["sessions"]
    assert [session["account"] for session in sessions] == ["alice"]
    assert call("DELETE", f"/sessions/{sessions[0]['sid']}")[0] == 204
    assert client.get("/me", headers=alice).status_code == 401
    assert len(call("GET", "/sessions")[1]["sessions"]) == 1
    (ended,) = audited("admin.session.end")
    assert ended["details"]["before"] == {name: str(value) for name, value in sessions[0].items()}
    assert ended["details"]["after"] is None


def test_an_engine_that_is_not_ready_is_shown_as_such(call):
    shown = call("GET", "/model")[1]
    assert (shown["model"], shown["engine"]["ready"]) == (None, False)


def test_the_model_that_is_served_is_shown(app, login):
    client = app.test_client()
    shown = client.get("/admin/model", headers=login("admin", at=client)).json
    assert shown["model"]["name"]
    assert shown["engine"]["ready"] is True
    assert shown["sequences"]["max"] > 0


def test_signing_keys_are_rotated_live(call, client, alice, audited):
    status, made = call("POST", "/signing-keys/rotate")
    assert status == 201
    assert client.get("/me", headers=alice).status_code == 200
    assert made["kid"] in json.dumps(audited("admin.signing_key.rotate"))
