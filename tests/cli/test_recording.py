"""What a command does to the service is in the audit log: who, what, which model, and how it ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from chatsvc.audit.options import AuditOptions
from chatsvc.audit.verify.log import verify_tree
from chatsvc.audit.verify.verdict import CLEAN
from chatsvc.cli import going_back
from chatsvc.cli.audit.recording import recorded_long
from chatsvc.cli.main import main
from chatsvc.cli.service.quickstart import prepare
from chatsvc.errors import OperatorError
from chatsvc.models.supply.known import EMBEDDED
from chatsvc.settings.load import load
from tests.audit.logs import home_trust, lines_of
from tests.models.ggufs import tiny_gguf
from tests.models.hub import serve
from tests.shapes import tiny_qwen2

pytestmark = pytest.mark.slow


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHATSVC_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def run(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(main, [str(each) for each in arguments])
    assert done.exit_code == code, done.output
    return done.output


def records(home: Path, action: str) -> list[dict]:
    options = AuditOptions(home / "audit", home / "keys")
    found = [json.loads(line) for line in lines_of(options)]
    return [each for each in found if each["action"] == action and each["stage"] != "begin"]


def key_file(path: Path) -> Path:
    path.write_bytes(os.urandom(32))
    path.chmod(0o400)
    return path


def test_each_act_on_models_is_recorded_with_what_it_changed(home: Path, tmp_path: Path):
    first, second = key_file(tmp_path / "first"), key_file(tmp_path / "second")
    run("model", "import", tiny_gguf(tmp_path / "tiny.gguf"), "--name", "one", "--activate")
    run("model", "import", tmp_path / "tiny.gguf", "--name", "two")
    run("model", "activate", "two")
    run("model", "remove", "one")
    run("model", "seal", "two", "--key-file", first)
    run("model", "rotate-key", "two", "--key-file", first, "--new-key-file", second)

    imported = records(home, "admin.model.import")
    assert [each["details"]["step"] for each in imported] == ["begins", "done", "begins", "done"]
    assert len({each["request_id"] for each in imported}) == 2
    assert (imported[1]["details"]["name"], imported[1]["details"]["source"]) == ("one", "tiny.gguf")
    assert len(imported[1]["details"]["digest"]) == 64
    activated = [
        (each["details"]["before"], each["details"]["after"]) for each in records(home, "admin.model.activate")
    ]
    assert activated == [(None, "one"), ("one", "two")]
    assert records(home, "admin.model.activate")[0]["details"]["digest"] == imported[1]["details"]["digest"]
    assert [each["details"]["name"] for each in records(home, "admin.model.remove")] == ["one"]
    sealed, rotated = records(home, "admin.model.seal")[-1], records(home, "admin.model.rotate_key")[0]
    assert sealed["details"]["kek_id"] == rotated["details"]["before"] != rotated["details"]["after"]
    signed = {each["details"]["digest"] for each in (imported[1], sealed, rotated)}
    assert len(signed) == 3  # each signs the folder anew
    all_of_it = [*imported, sealed, rotated, *records(home, "admin.model.activate")]
    assert {(each["outcome"], each["actor"].partition(":")[0]) for each in all_of_it} == {("allowed", "cli")}
    assert [each.exit_code for each in verify_tree(home / "audit", home_trust(home / "audit"))] == [CLEAN]


def test_what_is_refused_or_fails_is_recorded_as_that(home: Path, tmp_path: Path):
    run("model", "import", tiny_gguf(tmp_path / "tiny.gguf"), "--name", "one")
    (home / "models" / "one" / "extra.py").write_text("print()")
    run("model", "activate", "one", code=3)
    (refused,) = records(home, "admin.model.activate")
    assert (refused["outcome"], refused["reason"]) == ("denied", "model_refused")
    (tmp_path / "no.gguf").write_text("no model")
    run("model", "import", tmp_path / "no.gguf", "--name", "none", code=3)
    failed = records(home, "admin.model.import")[-1]
    assert (failed["outcome"], failed["reason"], failed["details"]["step"]) == ("error", "gguf_invalid", "failed")


def test_quickstart_serves_the_model_that_is_named_and_brings_it_in_once(home: Path, tmp_path: Path):
    file = tiny_gguf(tmp_path / "Mine.gguf")
    prepare(load(), str(file))
    with serve({"some/model": tiny_qwen2(tmp_path / "repository", heads=1)}) as hub:
        command = [sys.executable, "-m", "chatsvc.cli.main", "quickstart", "--prepare-only", "--model", "some/model"]
        place = {"MODELSCOPE_ENDPOINT": hub.url, "MODELSCOPE_CACHE": str(tmp_path / "cache")}
        subprocess.run(command, env={**os.environ, **place}, check=True)  # modelscope reads them once a process
    prepare(load(), "some/model")
    prepare(load(), "mine")
    prepare(load(), None)
    chosen = [each["details"]["after"] for each in records(home, "admin.model.activate")]
    assert chosen == ["mine", "model", "mine"]
    assert [each["details"]["step"] for each in records(home, "admin.model.fetch")] == ["begins", "done"]
    assert [each["details"]["step"] for each in records(home, "admin.model.import")] == ["begins", "done"]
    with pytest.raises(OperatorError, match="no model of the store"):
        prepare(load(), "another")


def test_what_quickstart_makes_is_recorded_once(home: Path):
    prepare(load())
    begun, done = records(home, "admin.model.import")
    assert (begun["details"], done["details"]["step"]) == ({"source": EMBEDDED.origin, "step": "begins"}, "done")
    assert (done["details"]["name"], len(done["details"]["digest"])) == (EMBEDDED.name, 64)
    (activated,) = records(home, "admin.model.activate")
    digest = done["details"]["digest"]
    assert activated["details"] == {"before": None, "after": EMBEDDED.name, "digest": digest}
    assert {each["actor"].partition(":")[0] for each in (begun, done, activated)} == {"cli"}

    (home / "models" / "current").unlink()
    prepare(load())
    assert len(records(home, "admin.model.import")) == 2  # it was there: nothing was imported, so nothing says so
    assert len(records(home, "admin.model.activate")) == 2
    prepare(load())
    assert len(records(home, "admin.model.activate")) == 2
    assert [each.exit_code for each in verify_tree(home / "audit", home_trust(home / "audit"))] == [CLEAN]


def test_a_model_that_quickstart_cannot_bring_is_recorded_as_that(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))  # whose cache is empty
    monkeypatch.setenv("CHATSVC_MODELS__OFFLINE", "true")
    with pytest.raises(OperatorError, match="chatsvc model import"):
        prepare(load())
    assert [each["outcome"] for each in records(home, "admin.model.import")] == ["allowed", "error"]
    assert not records(home, "admin.model.activate")


def test_an_act_that_the_operator_breaks_off_is_recorded(home: Path):
    def broken_off() -> None:
        with recorded_long(load(), "admin.model.fetch", {"source": "x/y"}):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert [each["outcome"] for each in records(home, "admin.model.fetch")] == ["allowed", "error"]


def test_without_a_record_nothing_is_done(home: Path, tmp_path: Path):
    run("model", "import", tiny_gguf(tmp_path / "tiny.gguf"), "--name", "one")
    segment = next((home / "audit").glob("*.jsonl"))
    segment.write_bytes(segment.read_bytes().replace(b"tiny.gguf", b"TINY.gguf"))
    assert "damaged" in run("model", "remove", "one", code=3)
    assert (home / "models" / "one").is_dir()


def test_going_back_to_an_older_release_is_recorded(home: Path):
    assert going_back.main(["0.2.0-abc", "0.1.0-def"]) == 0
    (record,) = records(home, "admin.release.rollback")
    assert (record["details"], record["outcome"]) == ({"before": "0.2.0-abc", "after": "0.1.0-def"}, "allowed")


def test_a_model_that_is_not_there_makes_no_home(home: Path):
    run("model", "activate", "none", code=3)
    assert not home.exists()


def test_taking_the_first_sealing_key_away_is_recorded(home: Path, tmp_path: Path):
    run("model", "import", tiny_gguf(tmp_path / "tiny.gguf"), "--name", "one")
    run("audit", "seal-key", "--output", tmp_path / "elsewhere")
    (taken,) = records(home, "audit.seal_key")
    moved = [path.name for path in (tmp_path / "elsewhere").glob("*.initial")]
    assert taken["details"]["files"] == moved != []
