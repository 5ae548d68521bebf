"""``chatsvc model import`` asks the runner that would serve a model, and takes in only what answers."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from chatsvc.cli.main import main
from chatsvc.engine.runners.native import library
from chatsvc.errors import OperatorError
from chatsvc.models.store import ModelStore
from tests.models.ggufs import tiny_gguf

CASES = Path(os.environ.get("CHATSVC_CASES") or Path(__file__).parents[3] / "shared" / "cases")
with_cases = pytest.mark.skipif(not CASES.is_dir(), reason=f"{CASES} is not here; CHATSVC_CASES may name the folder")
native = pytest.mark.skipif(bool(library.missing()), reason=f"the native runner does not run here: {library.missing()}")


ONE_TURN = "{% if messages[1:] %}{{ raise_exception('only one turn') }}{% endif %}{{ messages[0].content }}"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHATSVC_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["model", *map(str, arguments)])


def names(home: Path) -> list[str]:
    return [folder.name for folder in ModelStore(home / "models", home / "keys").list()]


@with_cases
@native
def test_a_model_that_answers_is_taken_in(home: Path) -> None:
    result = run("import", CASES / "rope-yarn.gguf", "--activate")
    assert result.exit_code == 0, result.output
    assert "having it answer" in result.stderr
    assert names(home) == ["rope-yarn"]
    assert [path.name for path in (home / "models").iterdir() if path.name.startswith(".")] == []


@with_cases
def test_what_no_runner_computes_is_refused_by_name(home: Path) -> None:
    result = run("import", CASES / "attbias.gguf")
    assert result.exit_code == 3
    assert "bias of the attention output" in result.stderr
    assert names(home) == []


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for %}", "not valid Jinja"),
        ("{{ raise_exception('not for you') }}", "not for you"),
        (ONE_TURN, "only one turn"),
        ("{# nothing #}", "empty prompt"),
    ],
)
def test_templates_that_do_not_render_are_refused(home: Path, tmp_path: Path, template: str, message: str) -> None:
    result = run("import", tiny_gguf(tmp_path / "tiny.gguf", template=template))
    assert result.exit_code == 3
    assert message in result.stderr
    assert names(home) == []


def test_a_model_that_takes_too_long_is_refused(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATSVC_ENGINE__LOAD_TIMEOUT_S", "0.05")
    result = run("import", tiny_gguf(tmp_path / "tiny.gguf"))
    assert result.exit_code == 3
    assert "engine.load_timeout_s = 0.05" in result.stderr


@with_cases
def test_verify_and_doctor_see_what_would_not_be_served(home: Path) -> None:
    """A model that an older version took in."""
    store = ModelStore(home / "models", home / "keys")
    store.import_path(CASES / "attbias.gguf", "bad")
    result = run("verify")
    assert result.exit_code == 1
    assert "bias of the attention output" in result.stdout
    assert run("activate", "bad").exit_code == 3
    assert store.active() is None
    store.activate("bad")
    found = json.loads(CliRunner().invoke(main, ["doctor", "--json"]).stdout)["findings"]
    assert [one["level"] for one in found if one["check"] == "model"] == ["fatal"]


def test_no_garbled_file_is_answered_by_a_traceback(home: Path, tmp_path: Path) -> None:
    """Bytes changed at random and cuts, mostly in the head: a sentence and exit code 3, or a model that answers."""
    content = tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
    store = ModelStore(home / "models", home / "keys")
    dice = random.Random(5)
    for number in range(60):
        garbled = bytearray(content)
        for _ in range(dice.randint(1, 8)):
            garbled[dice.randrange(dice.choice([64, 12_000, len(content)]))] = dice.randrange(256)
        if number % 4 == 0:
            del garbled[dice.randrange(len(garbled)) :]
        path = tmp_path / "garbled.gguf"
        path.write_bytes(garbled)
        result = (
            CliRunner().invoke(main, ["model", "import", str(path), "--name", f"m{number}"]) if number < 3 else None
        )
        if result is None:
            with_store(store, path, f"m{number}")
        else:
            assert result.exception is None or isinstance(result.exception, SystemExit), result.output
            assert result.exit_code in (0, 3)


def with_store(store: ModelStore, path: Path, name: str) -> None:
    try:
        store.import_path(path, name)
    except (OperatorError, OSError):
        return
    shutil.rmtree(store.get(name).path)
