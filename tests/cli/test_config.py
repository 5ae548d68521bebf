"""`chatsvc config`: what is in force, what is wrong, and nginx's files."""

from __future__ import annotations

import json
import shutil
import subprocess
import tomllib
from ipaddress import ip_network
from pathlib import Path

import pytest
from click.testing import CliRunner

from chatsvc.cli.checks import nginx_files
from chatsvc.cli.main import main
from chatsvc.errors import OperatorError
from chatsvc.http.wire.schema import max_chat_bytes

OPTIONS = nginx_files.NginxOptions(
    server_name="chat.test",
    listen=("443", "[::]:443"),
    certificate="/c.pem",
    certificate_key="/k.pem",
    socket="/w.sock",
)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def run_command(*arguments: str, **environment: str):
        for name, value in {"CHATSVC_HOME": str(tmp_path / "home"), **environment}.items():
            monkeypatch.setenv(name, value)
        return CliRunner().invoke(main, ["config", *arguments])

    return run_command


def test_a_good_configuration_is_code_0(run) -> None:
    assert run("check", CHATSVC_GUARD__ALLOWED_NETWORKS='["::1"]').exit_code == 0


def test_a_configuration_that_lets_nobody_in_is_code_1(run) -> None:
    result = run("check")
    assert result.exit_code == 1
    assert "nobody" in result.output


def test_a_wrong_configuration_is_code_3(run) -> None:
    result = run("check", CHATSVC_SERVER__PORT="x", CHATSVC_LOGS__LEVEL="LOUD")
    assert result.exit_code == 3
    assert "server.port" in result.stderr
    assert "logs.level" in result.stderr


def test_what_is_shown_is_toml_with_secrets_masked(run) -> None:
    result = run("show", CHATSVC_STORE__URL="postgresql+psycopg://u:canary@/db", CHATSVC_SERVER__PORT="9000")
    shown = tomllib.loads(result.stdout)
    assert shown["server"]["port"] == 9000
    assert "canary" not in result.stdout
    assert shown["store"]["url"]


def test_what_is_shown_is_json_on_demand(run) -> None:
    shown = json.loads(run("show", "--json", CHATSVC_STORE__URL="sqlite:///canary").stdout)
    assert shown["server"]["host"] == "127.0.0.1"
    assert "canary" not in json.dumps(shown)


def test_the_allow_list_ends_with_deny() -> None:
    lines = nginx_files.allow_list([ip_network("10.0.0.0/8"), ip_network("::1")]).splitlines()
    assert lines[1:] == ["allow 10.0.0.0/8;", "allow ::1/128;", "deny all;"]
    assert nginx_files.allow_list([]).splitlines()[1:] == ["deny all;"]


@pytest.mark.parametrize("name", ["a b", "a;b", "a{b", "$host", "a'b", "", "x\ny", "@X@"])
def test_a_value_that_would_be_another_directive_is_refused(name: str) -> None:
    options = nginx_files.NginxOptions(
        server_name=name, listen=("443",), certificate="/c", certificate_key="/k", socket="/s"
    )
    with pytest.raises(OperatorError, match="not allowed in nginx"):
        nginx_files.nginx_values(options, max_body_bytes=1, max_chats=1, deadline_s=1)


def test_limits_follow_the_configuration() -> None:
    values = nginx_files.nginx_values(OPTIONS, max_body_bytes=4711, max_chats=320, deadline_s=300)
    assert values["MAX_BODY_BYTES"] == "4711"
    assert values["DEADLINE"] == "315"
    assert values["LISTEN"].split("\n    ") == ["listen 443 ssl;", "listen [::]:443 ssl;"]


def test_nginx_needs_a_unix_socket(run, tmp_path: Path) -> None:
    arguments = [
        "nginx",
        "--output",
        str(tmp_path),
        "--server-name",
        "x",
        "--certificate",
        "/c",
        "--certificate-key",
        "/k",
    ]
    result = run(*arguments)
    assert result.exit_code == 3
    assert "server.socket is not set" in result.stderr


def test_nginx_accepts_what_is_written(run, tmp_path: Path) -> None:
    program = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if program is None:
        pytest.skip("nginx is not installed")
    key, chain = tmp_path / "k.pem", tmp_path / "c.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-subj", "/CN=chat.test", "-keyout", str(key), "-out", str(chain)],
        check=True, capture_output=True,
    )  # fmt: skip
    (tmp_path / "run").mkdir()
    result = run(
        "nginx", "--output", str(tmp_path), "--server-name", "chat.test", "--certificate", str(chain),
        "--certificate-key", str(key), "--listen", "127.0.0.1:1", "--run-directory", str(tmp_path / "run"),
        CHATSVC_SERVER__SOCKET="/tmp/x.sock", CHATSVC_GUARD__ALLOWED_NETWORKS='["10.0.0.0/8"]',
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    # no model yet: as much as the usual one takes
    assert f"client_max_body_size {max_chat_bytes(None)};" in (tmp_path / "chatsvc" / "chat.conf").read_text()
    assert "allow 10.0.0.0/8;" in (tmp_path / "chatsvc" / "allow.conf").read_text()
    checked = subprocess.run(
        [program, "-t", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


def test_a_certificate_for_a_first_try_is_found_where_it_was_made(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a relative folder is named by its whole path: nginx starts elsewhere
    result = run(
        "nginx", "--output", "made", "--server-name", "chat.test", "--self-signed", "tls",
        CHATSVC_SERVER__SOCKET="/tmp/x.sock", CHATSVC_GUARD__ALLOWED_NETWORKS='["10.0.0.0/8"]',
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    written = (tmp_path / "made" / "chatsvc.conf").read_text()
    assert f"ssl_certificate {tmp_path}/tls/chain.pem;" in written
    assert f"ssl_certificate_key {tmp_path}/tls/key.pem;" in written
    assert (tmp_path / "tls" / "chain.pem").is_file()
    assert (tmp_path / "tls" / "key.pem").is_file()


def test_nginx_without_any_certificate_says_which_options_name_one(run, tmp_path: Path) -> None:
    result = run("nginx", "--output", str(tmp_path), "--server-name", "x", CHATSVC_SERVER__SOCKET="/tmp/x.sock")
    assert result.exit_code == 2
    assert "--certificate-key, or --self-signed" in result.stderr
    assert not (tmp_path / "nginx.conf").exists()
