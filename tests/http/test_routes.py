"""Deny by default, proven over every route and every method."""

from __future__ import annotations

import re

import pytest
from flask import Flask

from chatsvc.app import running_in
from chatsvc.guard.principal import PUBLIC
from chatsvc.http.wire import routing
from chatsvc.http.wire.routing import check_every_route, requires, route

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"]


def every_call(app):
    """(method, path, rule) of everything that can be called."""
    for rule in app.url_map.iter_rules():
        path = str(rule).replace("<path:model_id>", "x").replace("<string(maxlength=64):conversation_id>", "x")
        while "<" in path:
            path = path[: path.index("<")] + "x" + path[path.index(">") + 1 :]
        for method in sorted(rule.methods):
            yield method, path, rule


def test_every_route_declares_what_it_requires(bare_app):
    assert all(routing.requirement_of(bare_app, rule) for rule in bare_app.url_map.iter_rules())


def test_an_undeclared_route_does_not_start():
    app = Flask(__name__, static_folder=None)
    app.add_url_rule("/open", view_func=lambda: "hello")
    with pytest.raises(RuntimeError, match="/open"):
        check_every_route(app)


def test_a_declared_method_of_an_object_keeps_its_requirement():
    class Views:
        TAG = "pages"

        @route("GET", "/hello")
        @requires(PUBLIC)
        def hello(self):
            return "hello"

    app = Flask(__name__, static_folder=None)
    app.register_blueprint(routing.blueprint("views", Views()))
    check_every_route(app)
    assert app.test_client().get("/hello").text == "hello"


def test_no_route_that_is_not_public_answers_without_a_token(bare_app, bare_client):
    for method, path, rule in every_call(bare_app):
        answer = bare_client.open(path, method=method)
        if routing.requirement_of(bare_app, rule) == PUBLIC:
            assert answer.status_code not in (401, 403), (method, path)
        else:
            assert answer.status_code == 401, (method, path)
            assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_the_public_routes_are_these(bare_app):
    public = {str(rule) for rule in bare_app.url_map.iter_rules() if routing.requirement_of(bare_app, rule) == PUBLIC}
    assert {path for path in public if not path.startswith(("/assets/", "/.well-known/", "/oidc/"))} == {
        "/",
        "/docs",
        "/health",
        "/healthz",
        "/livez",
        "/login",
        "/openapi.json",
        "/readyz",
    }


def test_every_route_refuses_an_address_that_is_not_listed(bare_app, bare_client):
    for method, path, _ in every_call(bare_app):
        answer = bare_client.open(path, method=method, environ_overrides={"REMOTE_ADDR": "192.0.2.1"})
        assert answer.status_code == 403, (method, path)


def test_an_account_without_roles_reaches_no_scoped_route(bare_app, bare_client):

    running_in(bare_app).guard.accounts.add("nobody", "nobody's long password", [])
    answer = bare_client.post("/login", json={"username": "nobody", "password": "nobody's long password"})
    headers = {"Authorization": f"Bearer {answer.json['access_token']}"}
    for method, path, rule in every_call(bare_app):
        requirement = routing.requirement_of(bare_app, rule)
        answer = bare_client.open(path, method=method, headers=headers)
        if requirement.scope is not None:
            assert answer.status_code == 403, (method, path)
        elif requirement.refresh:
            assert answer.status_code == 401, (method, path)
        if path == "/logout" and answer.status_code == 204:
            answer = bare_client.post("/login", json={"username": "nobody", "password": "nobody's long password"})
            headers = {"Authorization": f"Bearer {answer.json['access_token']}"}


@pytest.mark.parametrize(
    "path",
    [
        "/nowhere",
        "/x//chat",
        "/chat//",
        "/CHAT",
        "/chat/stream/x",
        "/%2e%2e/etc",
        "/\u2603",
        "/%00",
    ],
)
def test_unknown_paths_are_404_for_every_method(bare_client, path):
    for method in METHODS:
        answer = bare_client.open(path, method=method)
        assert answer.status_code == 404, method
        if method != "HEAD":
            assert answer.json["error"]["type"] == "not_found_error"


def test_wrong_methods_are_405_and_name_the_right_ones(bare_app, bare_client):
    allowed = {}
    for _, path, rule in every_call(bare_app):
        allowed.setdefault(path, set()).update(rule.methods)
    for path, methods in allowed.items():
        for method in set(METHODS) - methods:
            answer = bare_client.open(path, method=method)
            assert answer.status_code == 405, (method, path)
            assert set(answer.headers["Allow"].split(", ")) == methods


def test_no_answer_of_any_route_is_a_5xx_for_an_empty_request(bare_app, bare_client, login):
    for method, path, _ in every_call(bare_app):
        answer = bare_client.open(path, method=method, headers=login("admin", at=bare_client))
        assert answer.status_code < 500 or answer.status_code == 503, (method, path, answer.get_data())


NUMBERS = ["1000000000", "9" * 20, "000000001" + "9" * 20, "9" * 5000, "-1", "1e3", "٣", "", "1%00"]


def test_no_route_answers_an_absurd_number_or_a_nul_with_a_fault_of_ours(postgres, make_app, login):
    """PostgreSQL takes no NUL in a text and no number beyond its columns; SQLite takes the one and not the other."""
    app = make_app(with_model=False, CHATSVC_STORE__URL=postgres.url)
    client = app.test_client()
    headers = login("admin", at=client)
    for path, methods in client.get("/openapi.json").json["paths"].items():
        for parameter in methods.get("get", {}).get("parameters", []):
            for number in NUMBERS if parameter["in"] == "query" else ():
                answer = client.get(f"{path}?{parameter['name']}={number}", headers=headers)
                assert answer.status_code < 500, (path, parameter["name"], number)
    for rule in app.url_map.iter_rules():
        for method in sorted(rule.methods) if rule.arguments else ():
            path = re.sub("<[^>]*>", "x%00", str(rule))
            assert client.open(path, method=method, headers=headers, json={}).status_code == 404, (method, path)
