"""``/admin/models``."""

from __future__ import annotations

import pytest

from chatsvc.app import running_in
from chatsvc.models.store import ModelStore
from chatsvc.models.supply import embedded


@pytest.fixture
def admin(bare_client, login):
    return login("admin", at=bare_client)


def test_without_models_the_list_is_empty(bare_client, admin):
    answer = bare_client.get("/admin/models", headers=admin)
    assert answer.json == {"models": [], "active": None, "served": None}


def test_a_model_that_is_not_there_is_404(bare_client, admin):
    for name in ("nothing", "..", "a%2Fb", "."):
        answer = bare_client.post(f"/admin/models/{name}/activate", headers=admin)
        assert answer.status_code == 404
        assert answer.json["error"]["type"] == "not_found_error"


def test_only_an_administrator_may(bare_client, login):
    headers = login("alice", at=bare_client)
    assert bare_client.get("/admin/models", headers=headers).status_code == 403
    assert bare_client.post("/admin/models/x/activate", headers=headers).status_code == 403


@pytest.mark.slow
def test_a_model_is_listed_and_made_the_one_that_is_served(bare_app, bare_client, admin):
    running = running_in(bare_app)
    store = ModelStore(running.settings.models_directory, running.settings.keys_directory)
    folder = embedded.ensure(store, offline=False)
    store.root.joinpath("current").unlink(missing_ok=True)
    (listed,) = bare_client.get("/admin/models", headers=admin).json["models"]
    assert (listed["name"], listed["ok"], listed["active"], listed["format"]) == (folder.name, True, False, "gguf")
    digest = folder.card().digest
    answer = bare_client.post(f"/admin/models/{folder.name}/activate", headers=admin)
    assert (answer.status_code, answer.json) == (202, {"active": folder.name, "swapping": False})
    assert bare_client.get("/admin/models", headers=admin).json["active"] == folder.name

    folder.path.joinpath("extra.py").write_text("print()")
    refused = bare_client.post(f"/admin/models/{folder.name}/activate", headers=admin)
    assert (refused.status_code, refused.json["error"]["code"]) == (409, "model_refused")
    folder.path.joinpath("model.json").write_text("{}")
    (listed,) = bare_client.get("/admin/models", headers=admin).json["models"]
    assert listed == {"name": folder.name, "active": True, "ok": False}

    running.audit.close()
    text = "".join(path.read_text() for path in running.settings.audit_directory.rglob("*.jsonl"))
    assert text.count('"admin.model.activate"') == 4
    assert '"outcome":"denied"' in text
    assert f'"digest":"{digest}"' in text


def test_a_link_to_nothing_is_no_active_model(bare_app, bare_client, admin):
    root = running_in(bare_app).settings.models_directory
    root.mkdir(parents=True, exist_ok=True)
    root.joinpath("current").symlink_to("gone")
    assert bare_client.get("/admin/models", headers=admin).json["active"] is None
