"""Everything that changes something, answers something or is refused is in the audit log, whichever route it came by."""

from __future__ import annotations

import json

import pytest

from chatsvc.app import running_in
from chatsvc.http.wire.routing import template
from chatsvc.models.store import ModelStore
from chatsvc.models.supply import embedded
from tests.conftest import PASSWORDS

PASSWORD = "a long enough password"
CHAT = {"query": "What is the capital of France?", "max_tokens": 1}
OPENAI = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
# Routes that change something: the action that is recorded, and the body of a request that is allowed.
RECORDED = {
    ("POST", "/chat"): ("chat.generate", CHAT),
    ("POST", "/chat/stream"): ("chat.generate", CHAT),
    ("POST", "/v1/chat/completions"): ("chat.generate", OPENAI),
    ("POST", "/v1/completions"): ("chat.generate", {"prompt": "Hi", "max_tokens": 1}),
    ("POST", "/admin/accounts"): ("admin.account.create", {"name": "carol", "password": PASSWORD, "roles": ["user"]}),
    ("PATCH", "/admin/accounts/{name}"): ("admin.account.change", {"roles": ["viewer"]}),
    ("DELETE", "/admin/accounts/{name}"): ("admin.account.remove", None),
    ("PUT", "/admin/limits/{name}"): ("admin.account.limits", {"requests_per_minute": 5}),
    ("POST", "/admin/keys"): ("admin.key.create", {"account": "alice", "name": "k", "scopes": ["chat"]}),
    ("PATCH", "/admin/keys/{key_id}"): ("admin.key.limits", {"tokens_per_day": 5}),
    ("POST", "/admin/keys/{key_id}/rotate"): ("admin.key.rotate", {}),
    ("DELETE", "/admin/keys/{key_id}"): ("admin.key.revoke", None),
    ("DELETE", "/admin/sessions/{sid}"): ("admin.session.end", None),
    ("POST", "/admin/signing-keys/rotate"): ("admin.signing_key.rotate", None),
    ("POST", "/admin/models/{name}/activate"): ("admin.model.activate", None),
    ("POST", "/login"): ("auth.login", {"username": "bob", "password": PASSWORDS["bob"]}),
    ("POST", "/refresh"): ("auth.refresh", None),
    ("POST", "/password"): ("auth.password", {"current": PASSWORDS["bob"], "new": PASSWORD}),
    ("POST", "/logout"): ("auth.logout", None),
}
# One's own conversations are one's own business; a witnessed head is on record where it is refused.
NOT_RECORDED = {
    ("PATCH", "/conversations/{conversation_id}"),
    ("DELETE", "/conversations/{conversation_id}"),
    ("POST", "/audit/witness"),
}


def records(app, action: str) -> list[dict]:
    directory = running_in(app).settings.audit_directory
    text = b"".join(path.read_bytes() for path in sorted(directory.glob("*.jsonl")))
    return [found for line in text.splitlines() if (found := json.loads(line))["action"] == action]


def test_there_is_no_other_route_that_changes_something(bare_app):
    rules = [(method, template(rule)) for rule in bare_app.url_map.iter_rules() for method in rule.methods]
    changing = {each for each in rules if each[0] not in {"GET", "HEAD", "OPTIONS"}}
    assert changing == set(RECORDED) | NOT_RECORDED


class Caller:
    """Calls every route of the table, each so that it is allowed, and knows who called."""

    def __init__(self, app, client, login) -> None:
        self.app, self.client, self.login = app, client, login
        self.bob = client.post("/login", json={"username": "bob", "password": PASSWORDS["bob"]}).json
        self.made = {"name": "carol", "model": running_in(app).engine.card().name}

    def call(self, method: str, path: str, body: object):
        if path == "/login":
            headers = {}
        elif path == "/refresh":
            headers = {"Authorization": f"Bearer {self.bob['refresh_token']}"}
        elif path in {"/logout", "/password"}:
            headers = {"Authorization": f"Bearer {self.bob['access_token']}"}
        else:
            headers = self.login("alice" if "admin" not in path else "admin", at=self.client)
        answer = self.client.open(self.filled(path), method=method, json=body, headers=headers)
        assert answer.status_code < 300, (path, answer.get_json(silent=True))
        answer.get_data()
        if path == "/refresh":
            self.bob = answer.json
        if path == "/admin/keys":
            self.made["key_id"] = answer.json["key"].removeprefix("csk_").partition("_")[0]

    def filled(self, path: str) -> str:
        if "/models/" in path:
            return path.replace("{name}", self.made["model"])
        if "{sid}" in path:
            return path.replace("{sid}", self.session())
        return path.replace("{name}", self.made["name"]).replace("{key_id}", self.made.get("key_id", ""))

    def session(self) -> str:
        headers = self.login("admin", at=self.client)
        listed = self.client.get("/admin/sessions?account=alice", headers=headers).json["sessions"]
        return listed[0]["sid"]


def test_every_route_that_changes_something_leaves_its_record(app, login):
    settings = running_in(app).settings
    embedded.ensure(ModelStore(settings.models_directory, settings.keys_directory))
    caller = Caller(app, app.test_client(), login)
    for (method, path), (action, body) in RECORDED.items():
        if method == "DELETE" and path.startswith("/admin/accounts"):
            continue  # last, below
        before = len(records(app, action))
        caller.call(method, path, body)
        new = records(app, action)[before:]
        assert [each["stage"] for each in new[-2:]] == ["begin", "end"], path
        assert (new[-1]["outcome"], new[-1]["begin"]) == ("allowed", new[-2]["seq"]), path
        assert new[-1]["route"].partition("<")[0] == path.partition("{")[0]
        assert new[-2]["address"] == "127.0.0.1"
        assert path == "/login" or new[-2]["actor"], path
    caller.call("DELETE", "/admin/accounts/{name}", None)
    assert records(app, "admin.account.remove")[-1]["outcome"] == "allowed"


@pytest.mark.parametrize(
    ("path", "address", "headers", "reason"),
    [
        ("/me", "127.0.0.1", {}, "no credentials"),
        ("/me", "127.0.0.1", {"Authorization": "Bearer x.y.z"}, None),
        ("/me", "192.0.2.1", {}, None),
        ("/admin/accounts", "127.0.0.1", "alice", None),
    ],
)
def test_every_kind_of_refusal_is_recorded_with_its_reason(
    bare_app, bare_client, login, path, address, headers, reason
):
    given = login(headers, at=bare_client) if isinstance(headers, str) else headers
    assert bare_client.get(path, headers=given, environ_overrides={"REMOTE_ADDR": address}).status_code in (401, 403)
    running_in(bare_app).audit.close()  # what is only counted is written then at the latest
    (denied,) = records(bare_app, "request.denied")
    assert (denied["outcome"], denied["address"]) == ("denied", address)
    assert denied["reason"]
    assert reason in (None, denied["reason"])


def test_a_failed_login_is_recorded_without_the_name_that_was_tried(bare_app, bare_client):
    assert bare_client.post("/login", json={"username": "mallory", "password": PASSWORD}).status_code == 401
    end = records(bare_app, "auth.login")[-1]
    assert (end["outcome"], len(end["attempted_name_hmac"])) == ("denied", 64)
    assert "mallory" not in json.dumps(end)


def test_a_start_with_another_configuration_shows_and_one_with_the_same_does_not(make_app):
    digests = []
    for given in ({}, {}, {"CHATSVC_LIMITS__MAX_WAITING": "7"}):
        app = make_app(with_model=False, **given)
        running_in(app).audit.close()
        digests.append(records(app, "audit.start")[-1]["details"]["configuration"])
    assert digests[0] == digests[1] != digests[2]


def test_a_secret_of_the_configuration_does_not_change_its_digest(make_app):
    digests = []
    for secret in ("one", "two"):
        app = make_app(with_model=False, CHATSVC_OIDC__CLIENT_SECRET=secret)
        running_in(app).audit.close()
        digests.append(records(app, "audit.start")[-1]["details"]["configuration"])
    assert digests[0] == digests[1]


def test_tools_are_refused_so_none_is_called_without_a_record(bare_client, login):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    answer = bare_client.post(
        "/v1/chat/completions",
        json=OPENAI | {"tools": tools, "tool_choice": "required"},
        headers=login("alice", at=bare_client),
    )
    assert (answer.status_code, answer.json["error"]["param"]) == (400, "tool_choice")
