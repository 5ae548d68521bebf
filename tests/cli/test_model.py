"""``chatsvc model``: what it prints, and with which exit code it ends."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from chatsvc.cli.checks import doctor_checks as checks
from chatsvc.cli.main import main
from chatsvc.disk import pidfile
from chatsvc.models.store import ModelStore
from chatsvc.settings.load import load
from tests.models.ggufs import tiny_gguf
from tests.models.hub import serve
from tests.shapes import tiny_qwen2


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHATSVC_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("gguf") / "Tiny Model.gguf")


@pytest.fixture
def model(home: Path, gguf: Path) -> str:
    """In the store and active, without the trial that `import` makes in a process of its own."""
    store = ModelStore(home / "models", home / "keys")
    store.import_path(gguf, "tiny")
    return store.activate("tiny").name


@pytest.fixture
def key(tmp_path: Path) -> str:
    return make_key(tmp_path / "kek")


def make_key(path: Path) -> str:
    path.write_bytes(os.urandom(32))
    path.chmod(0o400)
    return str(path)


def run(*arguments: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(main, ["model", *arguments], input=stdin)


def test_an_empty_store_says_what_to_do(home: Path):
    result = run("list")
    assert (result.exit_code, "chatsvc model fetch" in result.stdout) == (0, True)
    assert json.loads(run("list", "--json").stdout) == []


def test_an_import_is_named_after_its_file_and_listed(home: Path, gguf: Path):
    result = run("import", str(gguf), "--json")
    assert json.loads(result.stdout)["name"] == "tiny-model"
    listed = json.loads(run("list", "--json").stdout)
    assert [(entry["name"], entry["format"], entry["active"], entry["sealed"]) for entry in listed] == [
        ("tiny-model", "gguf", False, False)
    ]
    assert json.loads(result.stdout)["name"] in {path.name for path in (home / "models").iterdir()}


def test_a_star_marks_the_active_model(model: str):
    assert run("list").stdout.startswith("* tiny  (gguf, context 2048")


@pytest.mark.slow
def test_activating_and_removing(model: str, home: Path, gguf: Path):
    ModelStore(home / "models", home / "keys").import_path(gguf, "second")
    assert run("remove", "tiny").exit_code == 3
    assert run("activate", "second").exit_code == 0
    assert run("remove", "tiny").exit_code == 0
    assert run("activate", "tiny").exit_code == 3


def test_an_import_that_activates_tells_the_running_service(model: str, home: Path, gguf: Path):
    told: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, _: told.append(number))
    try:
        with pidfile.hold(home):
            result = run("import", str(gguf), "--name", "second", "--activate")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert "The running service switches to it" in result.stdout
    assert told == [signal.SIGHUP]


def test_a_model_that_does_not_verify_is_exit_code_one(model: str, home: Path):
    assert run("verify", "--full").stdout == "tiny: ok\n"
    (home / "models" / "tiny" / "extra.py").touch()
    result = run("verify", "tiny")
    assert result.exit_code == 1
    assert "do not match" in result.stdout
    assert json.loads(run("verify", "--json").stdout) == [{"name": "tiny", "ok": False}]
    assert "REFUSED" in run("list").stdout


def test_fetching_imports_and_may_activate(home: Path, tmp_path: Path):
    with serve({"some/model": tiny_qwen2(tmp_path / "repository", heads=1)}) as hub:
        result = run("fetch", "some/model", "--endpoint", hub.url, "--revision", "v1", "--activate", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["source"] == "modelscope some/model@v1"
    active = ModelStore(home / "models", home / "keys").active()
    assert active is not None
    assert active.name == "model"


def test_fetch_without_a_model_lists_what_is_known_by_name(home: Path):
    listed = json.loads(run("fetch", "--json").stdout)
    assert {"smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"} == {entry["name"] for entry in listed}
    said = run("fetch").stdout
    for entry in listed:
        assert entry["licence"] == "Apache-2.0"
        assert all(text in said for text in (entry["name"], entry["sha256"], *entry["languages"]))


def test_a_known_model_is_a_pinned_file_without_a_revision(home: Path):
    result = run("fetch", "qwen2.5-coder-0.5b-instruct", "--revision", "v1")
    assert (result.exit_code, "one pinned file" in result.stderr) == (2, True)


def test_offline_in_the_configuration_counts(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CHATSVC_MODELS__OFFLINE", "true")
    result = run("fetch", "some/other-model", "--endpoint", "http://127.0.0.1:9")
    assert result.exit_code == 3
    assert "models.offline" in result.stderr


def test_only_safetensors_are_converted(model: str):
    result = run("convert", model)
    assert (result.exit_code, "only safetensors" in result.stderr) == (3, True)


def test_sealing_checking_and_rotating(model: str, key: str, tmp_path: Path):
    assert run("seal", model).exit_code == 2  # no key named
    assert run("seal", model, "--key-file", key).exit_code == 0
    assert "sealed" in run("list").stdout
    assert run("unseal-check", model, "--key-file", key).stdout == "tiny: ok\n"
    other = make_key(tmp_path / "other")
    wrong = run("unseal-check", model, "--key-file", other, "--json")
    assert (wrong.exit_code, json.loads(wrong.stdout)) == (1, {"name": "tiny", "ok": False})
    assert run("unseal-check", model, "--key-file", other).exit_code == 1
    assert run("rotate-key", model, "--key-file", key, "--new-key-file", other).exit_code == 0
    good = run("unseal-check", model, "--key-file", "-", "--json", stdin=Path(other).read_bytes())
    assert (good.exit_code, json.loads(good.stdout)) == (0, {"name": "tiny", "ok": True})
    assert run("unseal-check", model, "--key-file", "-", stdin=b"short").exit_code == 2


def test_a_sealed_model_that_could_not_be_tried_is_active_and_says_so(
    model: str, key: str, monkeypatch: pytest.MonkeyPatch
):
    assert run("seal", model, "--key-file", key).exit_code == 0
    blind = run("activate", model)
    assert blind.exit_code == 0, blind.stderr
    assert "models.kek_file is not set here" in blind.stdout
    (finding,) = checks.model(load())
    assert (finding.level, "no key" in finding.message) == ("warning", True)
    monkeypatch.setenv("CHATSVC_MODELS__KEK_FILE", key)
    tried = run("activate", model)
    assert tried.exit_code == 0, tried.stderr
    assert "kek_file" not in tried.stdout
    (finding,) = checks.model(load())
    assert finding.level == "good"


def test_the_key_of_the_configuration_is_used(model: str, key: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CHATSVC_MODELS__KEK_FILE", key)
    assert run("seal", model).exit_code == 0
    assert run("unseal-check", model).exit_code == 0
