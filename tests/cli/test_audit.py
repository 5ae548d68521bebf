"""``chatsvc audit`` as an operator and an auditor use it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from chatsvc.audit.facts import Facts, Result
from chatsvc.audit.format.replay import known_keys
from chatsvc.audit.log import AuditLog
from chatsvc.audit.options import AuditOptions
from chatsvc.cli.audit import command as audit
from chatsvc.cli.main import main
from chatsvc.store.database import Database
from chatsvc.store.migrate import migrate
from chatsvc.store.tables import Account
from tests.audit.logs import DAY_US, NOON_US, Time, last_segment, write_segments, write_some


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CHATSVC_HOME", str(tmp_path))
    monkeypatch.delenv("CHATSVC_CONFIG", raising=False)
    return tmp_path


@pytest.fixture
def options(home):
    return AuditOptions(home / "audit", home / "keys", lock_timeout_s=0)


@pytest.fixture
def time():
    return Time()


def run(*arguments, code=0):
    result = CliRunner().invoke(main, ["audit", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def test_a_clean_log_verifies(options, time):
    write_some(options, time)
    assert "clean: records 0 to 8" in run("verify")
    assert "clean" in run("verify", options.directory)
    assert "clean" in run("verify", last_segment(options))


@pytest.mark.parametrize("option", ["--key", "--seal-key"])
def test_a_file_that_is_no_key_is_one_sentence(options, time, tmp_path, option):
    write_some(options, time)
    (tmp_path / "no-key").write_bytes(b"\x80\xff\n" * 9)
    assert "is not of the form" in run("verify", option, tmp_path / "no-key", code=3)


def test_a_damaged_file_of_the_homes_own_keys_is_named(options, time, home):
    write_some(options, time)
    (home / "keys" / "audit-signing.pub").write_bytes(b"\xff\n")
    assert f"{home / 'keys' / 'audit-signing.pub'}: " in run("verify", code=3)


def test_a_copy_of_the_home_without_secrets_and_models_verifies(options, time, home, tmp_path, monkeypatch):
    write_some(options, time)
    shutil.copytree(home / "audit", tmp_path / "copy" / "audit")
    shutil.copy(options.directory / "audit.vkey", tmp_path / "brought")
    monkeypatch.setenv("CHATSVC_HOME", str(tmp_path / "copy"))
    (own,) = known_keys(options.directory)
    for file in ([], [tmp_path / "copy" / "audit"], [last_segment(options)]):
        told = run("verify", *file, code=1)  # a key beside the log is not trusted
        assert f"UNTRUSTED key: {own.name} {own.fingerprint}" in told
        assert f"trusted key (--key): {own.name}" in run("verify", *file, "--key", tmp_path / "brought")
    (tmp_path / "copy" / "keys").mkdir()
    shutil.copy(options.keys / "audit-signing.pub", tmp_path / "copy" / "keys")
    assert f"trusted key (keys/): {own.name} {own.fingerprint}" in run("verify")


def test_a_changed_record_is_named_and_is_exit_code_1(options, time):
    write_some(options, time)
    segment = last_segment(options)
    segment.write_bytes(segment.read_bytes().replace(b"alice", b"alicf", 1))
    assert "record 2" in run("verify", code=1)
    verdicts = json.loads(run("verify", "--json", code=1))
    assert (verdicts["exit_code"], verdicts["logs"][0]["seq"], verdicts["logs"][0]["ok"]) == (1, 2, False)


def test_the_last_ten_records_cut_off_are_exit_code_5(options, time):
    write_some(options, time, 10)
    segment = last_segment(options)
    segment.write_bytes(b"".join(segment.read_bytes().splitlines(keepends=True)[:-10]))
    assert "a checkpoint or witness states 23" in run("verify", code=5)


def test_a_torn_tail_is_exit_code_4(options, time):
    write_some(options, time)
    with last_segment(options).open("ab") as file:
        file.write(b"{")
    run("verify", code=4)


def test_without_a_log_verify_could_not_do_it(home):
    assert home.exists()
    run("verify", code=3)


def test_witness_key_and_seal_key_are_taken(options, time, home, tmp_path):
    write_some(options, time)
    checkpoints = last_segment(options).with_suffix(".checkpoints")
    (seal_key,) = (home / "for-auditor").glob("*.initial")
    run("verify", "--witness", checkpoints, "--key", options.directory / "audit.vkey", "--seal-key", seal_key)
    shutil.rmtree(options.directory)
    (tmp_path / "none").write_text("no key")
    run("verify", "--witness", tmp_path / "none", code=3)


def test_show_filters_and_prints(options, time):
    write_some(options, time)
    header, *lines = run("show").splitlines()
    assert header.split()[:2] == ["time", "(UTC)"]
    assert len(lines) == 9
    assert next(line for line in lines if "alice" in line).index("alice") == header.index("actor")
    assert run("show", "--action", "chat.*", "-n", "2").count("\n") == 3
    record = json.loads(run("show", "--json", "--outcome", "allowed", "--actor", "alice", "-n", "1"))
    assert (record["stage"], record["seq"]) == ("end", 7)
    assert run("show", "--since", "2027") == ""
    assert run("show", "-n", "0", "--actor", "alice").count("\n") == 7


def test_show_prints_accounts_by_name_and_finds_them_by_it(options, time, home):
    database = Database(f"sqlite:///{home / 'chatsvc.db'}")
    migrate(database)
    with database.session() as session:
        given = {"password_hash": "", "roles": "", "created_at": 0, "password_changed_at": 0, "source": "local"}
        session.add(Account(id="alice", name="王小明", **given))
        session.add(Account(id="b" * 32, name="bob", **given))
    database.close()
    write_some(options, time)
    assert run("show").count("王小明") == 6
    assert "alice" not in run("show")
    for actor in ("王小明", "王*", "alice", "al*"):
        assert run("show", "-n", "0", "--actor", actor).count("王小明") == 6
    assert run("show", "--actor", "bob") == ""  # an account that has done nothing
    assert json.loads(run("show", "--json", "--actor", "王小明", "-n", "1"))["actor"] == "alice"


@pytest.mark.parametrize("actor", ["nobody", "no*", ""])
def test_show_says_that_an_actor_is_unknown(options, time, actor):
    write_some(options, time)
    assert "user list" in run("show", "--actor", actor, code=2)


def test_show_does_not_make_a_database_and_manages_without_a_good_one(options, time, home):
    write_some(options, time)
    run("show")
    assert not (home / "chatsvc.db").exists()
    (home / "chatsvc.db").write_bytes(b"no database, but as long as one could be " * 100)
    assert "by their ids" in run("show")
    assert "alice" in run("show")


def test_show_follows(options, time, home):
    write_some(options, time, 1)
    command = [sys.executable, "-m", "chatsvc.cli.main", "audit", "show", "-f", "--action", "auth.login"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={"CHATSVC_HOME": str(home), "PATH": "/usr/bin:/bin"}
    )
    guard = threading.Timer(30, process.kill)
    guard.start()
    try:
        log = AuditLog.open(options)
        log.event(Facts("follow-me", "auth.login", "alice"), Result("allowed"))
        log.close()
        assert "actor" in process.stdout.readline()
        assert "follow-me" in process.stdout.readline()
    finally:
        guard.cancel()
        process.terminate()
        process.communicate()


def test_following_ends_with_control_c(options, time, monkeypatch):
    write_some(options, time, 1)
    naps = iter([lambda: write_some(options, time, 1), _interrupted])
    monkeypatch.setattr("time.sleep", lambda _: next(naps)())
    out = run("show", "-f", "-n", "1", "--action", "chat.generate", code=130)
    assert out.count("chat.generate") == 3


def _interrupted():
    raise KeyboardInterrupt


def test_an_export_verifies_where_nothing_else_is(options, time, home, tmp_path, monkeypatch):
    write_some(options, time)
    output = tmp_path / "out.jsonl"
    assert "chatsvc audit verify" in run(
        "export", "--from", "2026-11-22", "--to", "2026-11-23T00:00", "--output", output
    )
    monkeypatch.setenv("CHATSVC_HOME", str(tmp_path / "empty"))
    (own,) = known_keys(options.directory)
    told = run("verify", output, code=6)
    assert "9 records" in told
    assert f"UNTRUSTED key: {own.name} {own.fingerprint}" in told
    assert "clean: 9 records" in run("verify", output, "--key", options.directory / "audit.vkey")
    output.write_bytes(output.read_bytes().replace(b"alice", b"alicf", 1))
    run("verify", output, code=1)
    assert home.exists()


def test_an_export_needs_times(options, time, tmp_path):
    write_some(options, time)
    assert "not a day or a time" in run(
        "export", "--from", "yesterday", "--to", "2026-11-23", "--output", tmp_path / "x", code=2
    )
    assert "not be later" in run(
        "export", "--from", "2026-11-23", "--to", "2026-11-22", "--output", tmp_path / "x", code=2
    )


@pytest.fixture
def old(options, time):
    time.wall_us = NOON_US - 400 * DAY_US
    write_segments(options, time, 3, days_between=30)
    return options


def test_prune_removes_tells_and_is_in_the_log(old, home):
    assert "2 segments are older than 180 days" in run("prune", "--dry-run")
    assert len(list(old.directory.glob("*.jsonl"))) == 3
    assert "removed 2 segments" in run("prune")
    assert "records" in run("verify")
    assert json.loads(run("show", "--json", "--action", "audit.prune", "-n", "1"))["details"]["segments"]
    (home / "audit-policy.toml").write_text("[retention]\ndays = 3650\n")
    assert "0 segments are older than 3650 days" in run("prune")


def test_two_prunings_at_once_are_no_trouble(old, monkeypatch):
    monkeypatch.setattr("chatsvc.audit.verify.prune.prune", lambda *_: None)
    assert "removed" not in run("prune")


def test_prune_leaves_what_does_not_verify(old):
    first = min(old.directory.glob("*.jsonl"))
    first.write_bytes(first.read_bytes().replace(b"alice", b"alicf", 1))
    assert "Nothing was pruned" in run("prune", code=1)
    assert first.exists()


def test_the_auditor_takes_the_first_sealing_key_away(options, time, home, tmp_path):
    write_some(options, time)
    assert not list((home / "keys").glob("*.initial"))  # never beside the other keys
    away = tmp_path / "away"
    told = run("seal-key", "--output", away)
    assert "no longer in" in told
    assert not list((home / "for-auditor").iterdir())
    (key,) = away.glob("*.initial")
    (own,) = known_keys(options.directory)
    assert own.fingerprint in told
    told = run("verify", "--seal-key", key, "--key", away / "audit.vkey")
    assert f"trusted key (--key): {own.name} {own.fingerprint}" in told
    run("seal-key", "--output", away, code=3)


def test_the_first_sealing_key_is_dropped_when_nobody_wants_it(options, time, home):
    write_some(options, time)
    run("seal-key", code=2)
    run("seal-key", "--drop", "--output", home, code=2)
    assert "destroyed" in run("seal-key", "--drop")
    assert not list(home.rglob("*.initial"))
    run("verify")
    run("seal-key", "--drop", code=3)


def test_a_seal_is_checked_without_being_asked_while_its_key_is_there(options, time, home, monkeypatch):
    write_some(options, time)
    (key,) = (home / "for-auditor").glob("*.initial")
    text = key.read_text()
    key.chmod(0o600)
    key.write_text(text[:-2] + ("0" if text[-2] != "0" else "1") + "\n")
    assert "seal is not right" in run("verify", code=1)
    assert "clean" in run("verify", options.directory)
    monkeypatch.setattr("os.access", lambda *_: False)
    run("verify")


def test_a_sealing_key_is_not_written_over_another(options, time, home, tmp_path):
    write_some(options, time)
    (key,) = (home / "for-auditor").glob("*.initial")
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / key.name).write_text("something")
    run("seal-key", "--output", tmp_path / "away", code=3)
    assert key.stat().st_size > 0


def test_sealed_contents_are_read_with_the_auditors_key(home, tmp_path):
    run("auditor-key", "--output", tmp_path / "auditor")
    run("auditor-key", "--output", tmp_path / "auditor", code=3)
    options = AuditOptions(
        home / "audit", home / "keys", level="sealed", auditor_key=tmp_path / "auditor" / "auditor.pub.pem"
    )
    log = AuditLog.open(options)
    log.event(Facts("r", "chat.generate", "alice"), Result("allowed", content="秘密 question"))
    log.close()
    out = run("unseal", last_segment(options), "--key", tmp_path / "auditor" / "auditor.pem")
    assert json.loads(out)["content"] == "秘密 question"


def test_help_names_every_subcommand():
    out = run("--help")
    assert all(name in out for name in audit.command.commands)
    assert Path(audit.__file__).exists()
