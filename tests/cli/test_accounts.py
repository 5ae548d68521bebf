"""`chatsvc user`, `key` and `token`: what they print, their exit codes, and that their acts take effect at once."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from ipaddress import ip_address

import pytest
from click.testing import CliRunner

from chatsvc.cli.accounts import open_guard, user
from chatsvc.cli.main import main
from chatsvc.guard.assembly import assemble
from chatsvc.guard.gate import Credentials
from chatsvc.guard.limits.queue import Queue
from chatsvc.guard.principal import ANY_PRINCIPAL
from chatsvc.settings import load as configuration
from chatsvc.wiring import guard_options
from tests.tokens import signed_pair

PASSWORD = "correct horse battery"


@pytest.fixture
def environment(tmp_path):
    return {
        "CHATSVC_HOME": str(tmp_path),
        "CHATSVC_ACCOUNTS__ARGON2_MEMORY_KIB": "8192",
        "CHATSVC_ACCOUNTS__ARGON2_TIME_COST": "1",
    }


@pytest.fixture
def run(environment):
    """``run("user", "add", …, given=…)``: the exit code and what was printed."""
    runner = CliRunner(env=environment)

    def do(*arguments, given=None):
        result = runner.invoke(main, arguments, input=given)
        return result.exit_code, result.stdout, result.stderr

    return do


@pytest.fixture
def ada(run):
    assert run("user", "add", "ada", "--role", "user", "--password-stdin", given=PASSWORD + "\n")[0] == 0


@pytest.fixture
def web(environment):
    """A web process's guard on the same home."""
    options = guard_options(configuration.load(environment))
    guard = assemble(options)
    yield guard, guard.gate(options, Queue(1, 1, 1), lambda *_: None)
    guard.close()


def test_an_account_is_added_from_a_file_and_logs_in(run, tmp_path, web):
    (tmp_path / "password").write_text(PASSWORD + "\n")
    code, out, _ = run("user", "add", "ada", "--role", "user", "--password-file", str(tmp_path / "password"), "--json")
    assert code == 0
    assert json.loads(out)["roles"] == ["user"]
    assert web[0].login.verify("ada", PASSWORD, ip_address("127.0.0.1")).name == "ada"


@pytest.mark.parametrize(
    ("arguments", "given", "code"),
    [
        (["add", "bob", "--password-stdin"], "short\n", 2),
        (["add", "b b", "--password-stdin"], PASSWORD, 2),
        (["add", "bob", "--role", "root", "--password-stdin"], PASSWORD, 2),
        (["add", "ada", "--password-stdin"], PASSWORD, 3),
        (["add", "bob"], "", 2),
        (["add", "bob", "--password-file", "/nonexistent"], None, 2),
        (["add", "bob", "--password-file", "/dev/null", "--password-stdin"], "", 2),
        (["add"], None, 2),
        (["disable", "nobody"], None, 3),
        (["passwd", "nobody", "--password-stdin"], PASSWORD, 3),
        (["roles", "ada", "--role", "root"], None, 2),
        (["limits", "ada", "--tokens-per-day", "0"], None, 2),
    ],
)
def test_what_cannot_be_done_says_so_by_its_exit_code(run, ada, arguments, given, code):
    assert run("user", *arguments, given=given)[0] == code


def test_a_home_that_is_not_there_is_named_with_its_remedy(tmp_path):
    result = CliRunner(env={"CHATSVC_HOME": str(tmp_path / "elsewhere")}).invoke(main, ["user", "list"])
    assert result.exit_code == 3
    assert "set CHATSVC_HOME" in result.stderr
    assert not (tmp_path / "elsewhere").exists()


def test_a_password_is_never_printed(run):
    for code, out, err in (
        run("user", "add", "ada", "--password-stdin", given=PASSWORD),
        run("user", "add", "ada", "--password-stdin", given=PASSWORD),
        run("user", "list", "--json"),
    ):
        assert PASSWORD not in out + err, code


def test_accounts_are_listed(run, ada):
    assert run("user", "list")[1] == "NAME\tSTATE\tROLES\tSOURCE\nada\tenabled\tuser\tlocal\n"
    assert [account["name"] for account in json.loads(run("user", "list", "--json")[1])] == ["ada"]


def test_disabling_enabling_and_removing_take_effect(run, ada):
    assert run("user", "disable", "ada")[0] == 0
    assert "disabled" in run("user", "list")[1]
    assert run("user", "enable", "ada")[0] == 0
    assert "enabled" in run("user", "list")[1]
    assert run("user", "roles", "ada", "--role", "admin", "--role", "user")[0] == 0
    assert "admin user" in run("user", "list")[1]
    assert json.loads(run("user", "limits", "ada", "--tokens-per-day", "7", "--json")[1])["tokens_per_day"] == 7
    assert run("user", "remove", "ada", "--yes")[0] == 0
    assert run("user", "list")[1] == ""


def test_a_new_password_ends_sessions_and_forgets_failures(run, ada, web):
    guard, gate = web
    pair = signed_pair(guard.sessions.start(guard.accounts.get("ada").id, "127.0.0.1")[1])
    assert run("user", "passwd", "ada", "--password-stdin", given="another good password")[0] == 0
    with pytest.raises(Exception, match="Authentication failed"):
        gate.authenticate(Credentials((f"Bearer {pair.access_token}",)), ANY_PRINCIPAL)


def test_a_key_is_printed_alone_and_works_until_it_is_revoked(run, ada, web):
    _, gate = web
    code, out, _ = run("key", "create", "--name", "ci", "--scope", "chat", "--account", "ada")
    assert code == 0
    assert re.fullmatch(r"csk_[a-z0-9]+_[A-Za-z0-9_-]+\n", out)
    key_id = out.split("_")[1]
    assert gate.authenticate(Credentials(api_key=(out.strip(),)), ANY_PRINCIPAL).key_id == key_id
    assert run("key", "list")[1].splitlines()[1].startswith(f"{key_id}\tvalid\tada\tchat\tci")
    rotated = run("key", "rotate", key_id, "--grace-hours", "0")[1].strip()
    assert gate.authenticate(Credentials(api_key=(rotated,)), ANY_PRINCIPAL)
    assert run("key", "revoke", key_id)[0] == 0
    assert "revoked" in run("key", "list")[1]
    with pytest.raises(Exception, match="Authentication failed"):
        gate.authenticate(Credentials(api_key=(rotated,)), ANY_PRINCIPAL)


def test_a_key_can_have_limits_of_its_own(run, ada):
    limits = ["--requests-per-minute", "7", "--tokens-per-day", "70", "--max-concurrent", "2"]
    out = run("key", "create", "--name", "ci", "--scope", "chat", "--account", "ada", "--json", *limits)[1]
    made = json.loads(out)
    assert (made["requests_per_minute"], made["tokens_per_day"], made["max_concurrent"]) == (7, 70, 2)


def test_the_limits_of_a_key_can_be_changed(run, ada):
    given = ["--requests-per-minute", "7", "--max-concurrent", "2"]
    made = json.loads(run("key", "create", "--name", "ci", "--scope", "chat", "--account", "ada", "--json", *given)[1])
    change = ["--tokens-per-day", "70", "--expires-days", "1", "--without", "max-concurrent"]
    changed = json.loads(run("key", "change", made["id"], "--json", *change)[1])
    assert (changed["requests_per_minute"], changed["tokens_per_day"], changed["max_concurrent"]) == (7, 70, None)
    assert changed["expires_at"] > made["created_at"]
    assert run("key", "change", made["id"], "--without", "expiry")[1] == f"Changed the limits of {made['id']}.\n"
    assert json.loads(run("key", "list", "--json")[1])[0]["expires_at"] is None


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["create", "--name", "ci", "--scope", "chat", "--account", "nobody"], 3),
        (["create", "--name", "ci", "--scope", "fly", "--account", "ada"], 2),
        (["create", "--name", "ci", "--scope", "admin", "--account", "ada"], 3),
        (["create", "--name", "ci", "--account", "ada"], 2),
        (["revoke", "nothere"], 3),
        (["rotate", "nothere"], 3),
        (["change", "nothere", "--tokens-per-day", "5"], 3),
        (["change", "nothere"], 2),
        (["change", "nothere", "--tokens-per-day", "5", "--without", "tokens-per-day"], 2),
        (["change", "nothere", "--tokens-per-day", "0"], 2),
    ],
)
def test_keys_that_cannot_be(run, ada, arguments, code):
    assert run("key", *arguments)[0] == code


def test_keys_speak_json_too(run, ada):
    made = json.loads(
        run("key", "create", "--name", "ci", "--scope", "chat", "--account", "ada", "--expires-days", "1", "--json")[1]
    )
    assert made["key"].startswith("csk_")
    assert json.loads(run("key", "rotate", made["id"], "--json")[1])["key"] != made["key"]
    assert json.loads(run("key", "revoke", made["id"], "--json")[1])["revoked"]
    assert len(json.loads(run("key", "list", "--account", "ada", "--json")[1])) == 1


def test_signing_keys_are_rotated_without_logging_anybody_out(run, ada, web):
    guard, gate = web
    pair = signed_pair(guard.sessions.start(guard.accounts.get("ada").id, "127.0.0.1")[1])
    kid = json.loads(run("key", "rotate-signing", "--json")[1])["kid"]
    assert gate.authenticate(Credentials((f"Bearer {pair.access_token}",)), ANY_PRINCIPAL)
    until = time.monotonic() + 10  # an unknown key is looked for twenty times a second at most
    while guard.ring.find(kid) is None and time.monotonic() < until:
        time.sleep(0.1)
    assert guard.ring.find(kid)
    assert "from now on" in run("key", "rotate-signing")[1]


@pytest.mark.parametrize("how", ["sid", "jti", "refresh", "account", "stdin"])
def test_a_session_is_ended_by_whatever_is_known_of_it(run, ada, web, how):
    guard, gate = web
    sid, unsigned = guard.sessions.start(guard.accounts.get("ada").id, "127.0.0.1")
    pair = signed_pair(unsigned)
    jti = guard.tokens.check(pair.refresh_token, "refresh").jti
    access = guard.tokens.check(pair.access_token, "access").jti
    arguments = {
        "sid": [sid],
        "jti": [access],
        "refresh": [jti],
        "account": ["--account", "ada"],
        "stdin": ["--stdin"],
    }[how]
    assert run("token", "list")[1].splitlines()[1].startswith(sid)
    assert run("token", "revoke", *arguments, given=pair.access_token if how == "stdin" else None)[0] == 0
    with pytest.raises(Exception, match="Authentication failed"):
        gate.authenticate(Credentials((f"Bearer {pair.access_token}",)), ANY_PRINCIPAL)
    assert json.loads(run("token", "list", "--account", "ada", "--json")[1]) == []


def test_a_session_that_is_not_there_is_exit_code_1(run, ada):
    assert run("token", "revoke", "nothere")[0] == 1
    assert run("token", "revoke", "--stdin", given="nonsense")[0] == 1
    assert run("token", "revoke", "--account", "nobody")[0] == 3
    assert run("token", "revoke")[0] == 2
    assert json.loads(run("token", "revoke", "nothere", "--json")[1])["not_found"] == ["nothere"]


@pytest.mark.parametrize("how", ["--password-file", "--password-stdin"])
def test_a_password_that_is_no_text_is_one_sentence_without_it(run, tmp_path, how):
    data = b"canary-\xff-canary-canary"
    (tmp_path / "password").write_bytes(data)
    arguments = [how, str(tmp_path / "password")] if how == "--password-file" else [how]
    code, out, err = run("user", "add", "ada", *arguments, given=data)
    assert code == 2
    assert "UTF-8" in err
    assert "canary" not in out + err


def test_a_password_can_be_typed_on_a_terminal(run, monkeypatch):
    class Terminal:
        def isatty(self):
            return True

    monkeypatch.setattr(user.sys, "stdin", Terminal())
    monkeypatch.setattr(user.click, "prompt", lambda *_, **__: PASSWORD)
    assert user._password(None, from_stdin=False) == PASSWORD


def test_who_acts_is_the_account_of_the_machine(monkeypatch):
    assert open_guard.actor().startswith("cli")

    def nameless():
        raise KeyError

    monkeypatch.setattr(open_guard.getpass, "getuser", nameless)
    assert open_guard.actor() == "cli"


@pytest.mark.slow
def test_the_real_command_has_the_same_exit_codes(environment):
    def command(*arguments, given=""):
        return subprocess.run(
            [sys.executable, "-m", "chatsvc.cli.main", *arguments],
            env=environment, input=given, capture_output=True, text=True, check=False,
        )  # fmt: skip

    assert command("user", "add", "ada", "--role", "user", "--password-stdin", given=PASSWORD).returncode == 0
    again = command("user", "add", "ada", "--role", "user", "--password-stdin", given=PASSWORD)
    assert again.returncode == 3
    assert "ada" in again.stderr
    assert "Traceback" not in again.stderr


def test_doubled_accounts_of_earlier_versions_are_found(run, ada, web):
    guard, _ = web
    assert run("user", "duplicates") == (0, "Every name has one account.\n", "")
    assert run("user", "duplicates", "--json")[:2] == (0, "[]\n")
    with guard.database.session() as session:
        for name in ("ADA", "ａｄａ"):
            row = guard.accounts.new_row(name, "", ["user"], "ldap")
            row.name_key = f"ada#{row.id}"
            session.add(row)
    code, printed, _ = run("user", "duplicates", "--json")
    assert code == 1
    assert [[account["name"] for account in group] for group in json.loads(printed)] == [["ada", "ADA", "ａｄａ"]]
    code, printed, _ = run("user", "duplicates")
    assert (code, printed.splitlines()[0]) == (1, "ada, ADA, ａｄａ")
    for name in ("ada", "ａｄａ"):
        assert run("user", "remove", name, "--yes")[0] == 0
    assert run("user", "duplicates")[0] == 0
    assert run("user", "disable", "ada")[0] == 0  # the one that is left, in whatever spelling
    assert guard.accounts.get("ADA").disabled
