"""The pages and the OpenAPI document."""

from __future__ import annotations

import re

import pytest
from flask import Flask

from chatsvc.http.pages import views as ui
from chatsvc.http.wire import routing

PAGES = ["/", "/docs"]


@pytest.mark.parametrize("path", PAGES)
def test_a_page_loads_nothing_from_elsewhere_and_runs_nothing_inline(bare_client, path):
    answer = bare_client.get(path)
    assert answer.status_code == 200
    assert answer.mimetype == "text/html"
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bon\w+=|style=|javascript:|https?://", answer.text)
    for name in re.findall(r'(?:src|href)="(assets/[^"]+)"', answer.text):
        assert bare_client.get(f"/{name}").status_code == 200


def test_single_sign_on_is_offered_only_where_there_is_a_provider(bare_client):
    assert 'data-sso="no"' in bare_client.get("/").text
    app = Flask(__name__, static_folder=None)
    app.register_blueprint(routing.blueprint("ui", ui.PageViews(single_sign_on=True)))
    assert 'data-sso="yes"' in app.test_client().get("/").text


def test_scripts_fetch_nothing_from_elsewhere_and_write_no_markup():
    for name, page in ui.read_pages().items():
        if name.endswith(".js"):
            source = page.content.decode()
            assert not re.search(
                r"https?://|innerHTML|insertAdjacentHTML|document\.write|eval\(|localStorage|sessionStorage", source
            )


def test_both_languages_say_the_same_things():
    source = ui.read_pages()["texts.js"].content.decode()
    english, chinese = source.split("zh: {")
    keys = [set(re.findall(r"(\w+): \"", part)) for part in (english, chinese)]
    assert keys[0] == keys[1]
    used = set()
    for name in ("index.html", "docs.html", "chat.js", "docs.js", "list.js", "page.js", "talk.js"):
        text = ui.read_pages()[name].content.decode()
        used |= set(re.findall(r'data-(?:text|label|placeholder)="(\w+)"', text))
        used |= {key for call in re.findall(r"\bsay\(([^()]*)", text) for key in re.findall(r'"(\w+)"', call)}
    assert {"stoppedEarly", "again"} <= used <= keys[0]


@pytest.mark.parametrize("name", ["nothing.js", "index.html", "docs.html", "..", "%2e%2e", "..%2fui.py", "__init__.py"])
def test_no_other_file_is_served(bare_client, name):
    assert bare_client.get(f"/assets/{name}").status_code == 404


def test_an_asset_that_has_not_changed_is_304(bare_client):
    first = bare_client.get("/assets/chat.js")
    again = bare_client.get("/assets/chat.js", headers={"If-None-Match": first.headers["ETag"]})
    assert again.status_code == 304
    assert again.get_data() == b""


@pytest.fixture
def document(bare_client):
    return bare_client.get("/openapi.json").json


def test_the_document_has_every_route_and_nothing_else(bare_app, document):
    documented = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    there = {
        (method, routing.template(rule))
        for rule in bare_app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }
    assert documented == there
    assert document["openapi"].startswith("3.1")


def test_every_reference_of_the_document_leads_somewhere(document):
    def references(value):
        if isinstance(value, dict):
            if "$ref" in value:
                yield value["$ref"]
            for item in value.values():
                yield from references(item)
        elif isinstance(value, list):
            for item in value:
                yield from references(item)

    for reference in set(references(document)):
        target = document
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]


def test_every_operation_says_what_it_needs_and_how_it_fails(document):
    ids = []
    for path, item in document["paths"].items():
        for method, operation in item.items():
            ids.append(operation["operationId"])
            assert {"403", "500", "503"} <= set(operation["responses"]), (method, path)
            assert (operation["security"] == []) == ("401" not in operation["responses"] or path == "/login")
            assert operation["tags"][0] in {tag["name"] for tag in document["tags"]}
    assert len(ids) == len(set(ids))
