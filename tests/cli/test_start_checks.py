"""Problems that would keep the service from starting are reported by `config check`, `serve` and `quickstart`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from chatsvc.cli.checks import start_checks
from chatsvc.cli.main import main
from chatsvc.cli.service.serve import engine_command
from chatsvc.errors import ConfigurationInvalid
from chatsvc.settings.load import Settings, load
from chatsvc.supervisor import cgroup

LISTED = {"CHATSVC_GUARD__ALLOWED_NETWORKS": '["127.0.0.0/8"]'}


def settings(home: Path, **keys: str) -> Settings:
    return load({"CHATSVC_HOME": str(home), **LISTED, **{f"CHATSVC_{key}": value for key, value in keys.items()}})


def test_the_defaults_have_no_problem(tmp_path: Path) -> None:
    assert start_checks.problems(settings(tmp_path / "home")) == []
    assert start_checks.warnings(settings(tmp_path / "home")) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("STORE__URL", "mysql://u:canary@host/db"),
        ("STORE__URL", "canary"),
        ("STORE__REDIS_URL", "http://canary"),
        ("AUDIT__WITNESS_URL", "ftp://canary/db"),
        ("AUDIT__WITNESS_PEER_URL", "canary"),
        ("LDAP__URL", "ldap://"),
        ("LDAP__URL", "ldap://host:port"),
        ("OIDC__ISSUER", "canary"),
    ],
)
def test_a_url_of_another_kind_is_refused_without_repeating_it(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(ConfigurationInvalid) as caught:
        settings(tmp_path, **{key: value})
    (problem,) = caught.value.problems
    section, _, name = key.lower().partition("__")
    assert problem.startswith(f"{section}.{name}: ")
    assert "canary" not in problem


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("LDAP__ROLES", '{"chatters": "usr"}'),
        ("OIDC__ROLES", '{"chatters": "usr"}'),
        ("LIMITS__BY_ROLE", '{"usr": {"max_concurrent": 1}}'),
    ],
)
def test_a_role_that_does_not_exist_is_named(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(ConfigurationInvalid) as caught:
        settings(tmp_path, **{key: value})
    (problem,) = caught.value.problems
    assert "there is no role 'usr'" in problem
    assert "operator" in problem


@pytest.mark.parametrize(
    "key",
    ["AUDIT__AUDITOR_KEY_FILE", "AUDIT__WITNESS_PEER_CA_FILE", "AUDIT__WITNESSED_KEYS_FILE", "LDAP__CA_FILE", "MODELS__KEK_FILE"],
)  # fmt: skip
def test_a_file_that_is_not_there_is_a_problem(tmp_path: Path, key: str) -> None:
    missing = tmp_path / "missing.pem"
    (problem,) = start_checks.problems(settings(tmp_path, **{key: str(missing)}))
    section, _, name = key.lower().partition("__")
    assert problem.startswith(f"{section}.{name}: ")
    assert str(missing) in problem


@pytest.mark.parametrize("key", ["AUDIT__DIRECTORY", "AUDIT__SECOND_DIRECTORY", "SERVER__SOCKET"])
def test_a_directory_that_is_a_file_is_a_problem(tmp_path: Path, key: str) -> None:
    (tmp_path / "file").touch()
    (problem,) = start_checks.problems(settings(tmp_path / "home", **{key: str(tmp_path / "file" / "inside")}))
    assert str(tmp_path / "file") in problem
    assert "is not a directory" in problem


def test_a_database_and_a_witness_file_need_their_directories(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    inside = tmp_path / "file" / "x"
    keys = {"STORE__URL": f"sqlite:///{inside}", "AUDIT__WITNESS_FILES": f'["{inside}"]'}
    assert len(start_checks.problems(settings(tmp_path / "home", **keys))) == 2


def test_a_group_too_small_for_the_threads_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "max_tasks", lambda: 256)
    (warning,) = start_checks.warnings(settings(tmp_path / "home"))
    assert "The control group allows 256 processes and threads" in warning
    assert "TasksMax" in warning
    assert start_checks.warnings(settings(tmp_path / "home", LIMITS__MAX_WAITING="32")) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="another account's view needs root to become that account")
def test_a_directory_of_somebody_else_is_a_problem(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    code = (
        f"import os; from chatsvc.cli.checks import start_checks; from chatsvc.settings.load import load\n"
        f"settings = load({{'CHATSVC_HOME': {str(tmp_path / 'home')!r}, **{LISTED!r}}})\n"
        f"assert start_checks.problems(settings) == []\n"
        f"os.setgid(65534); os.setuid(65534)\n"
        f"print(start_checks.problems(settings))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "this account cannot write there" in result.stdout


def test_a_socket_path_that_the_kernel_cannot_hold_is_a_problem(tmp_path: Path) -> None:
    (problem,) = start_checks.problems(settings(tmp_path, SERVER__SOCKET=str(tmp_path / ("s" * 100))))
    assert "longer than 100 bytes" in problem


def test_a_host_that_is_no_address_is_a_problem(tmp_path: Path) -> None:
    (problem,) = start_checks.problems(settings(tmp_path, SERVER__HOST="300.1.1.1"))
    assert problem.startswith("server.host: 300.1.1.1: ")


def test_an_api_audience_that_is_the_client_is_a_problem(tmp_path: Path) -> None:
    keys = {"OIDC__ISSUER": "https://id.example", "OIDC__API_AUDIENCE": "chatsvc"}
    (problem,) = start_checks.problems(settings(tmp_path, **keys))
    assert "oidc.api_audience" in problem


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_listening_to_others_without_a_list_of_them_is_warned_of(tmp_path: Path, host: str) -> None:
    unencrypted, nobody = start_checks.warnings(settings(tmp_path, SERVER__HOST=host))
    assert "unencrypted" in unencrypted
    assert "guard.allowed_networks" in nobody
    assert str(tmp_path / "chatsvc.toml") in nobody


def test_with_clients_on_the_list_only_the_missing_encryption_is_warned_of(tmp_path: Path) -> None:
    keys = {"GUARD__ALLOWED_NETWORKS": '["10.0.0.0/8"]', "SERVER__HOST": "0.0.0.0"}
    assert len(start_checks.warnings(settings(tmp_path, **keys))) == 1
    assert start_checks.warnings(settings(tmp_path, **keys, SERVER__SOCKET=str(tmp_path / "s"))) == []


def test_config_check_and_serve_say_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"CHATSVC_HOME": str(tmp_path), "CHATSVC_LDAP__CA_FILE": "/no/such.pem", **LISTED}.items():
        monkeypatch.setenv(name, value)
    checked, served = (CliRunner().invoke(main, arguments) for arguments in (["config", "check"], ["serve"]))
    assert (checked.exit_code, served.exit_code) == (1, 3)
    assert "ldap.ca_file: /no/such.pem: No such file or directory" in checked.output
    assert "ldap.ca_file: /no/such.pem: No such file or directory" in served.stderr


def test_serve_without_a_model_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"CHATSVC_HOME": str(tmp_path), **LISTED}.items():
        monkeypatch.setenv(name, value)
    for command in ("serve", "engine"):
        result = CliRunner().invoke(main, [command])
        assert result.exit_code == 3
        assert "chatsvc model import --embedded --activate" in result.stderr


def test_import_takes_a_path_or_the_embedded_model_and_not_both(tmp_path: Path) -> None:
    for arguments in ([], [str(tmp_path), "--embedded"], ["--embedded", "--name", "other"]):
        assert CliRunner().invoke(main, ["model", "import", *arguments]).exit_code == 2


def test_the_engine_gets_no_secret_of_the_web_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = {
        "CHATSVC_STORE__URL": "sqlite:///canary",
        "CHATSVC_LDAP__BIND_PASSWORD": "canary",
        "CHATSVC_OIDC__CLIENT_SECRET_FILE": "/canary",
        "CHATSVC_AUDIT__WITNESS_PEER_KEY": "canary",
        "chatsvc_store__redis_url": "redis://canary",
    }
    needed = {"CHATSVC_ENGINE__NUM_THREADS": "1", "CHATSVC_MODELS__OFFLINE": "true", "CHATSVC_CONFIG": "/c.toml"}
    for name, value in {**secret, **needed}.items():
        monkeypatch.setenv(name, value)
    environment = engine_command(settings(tmp_path), None).environment
    assert not any("canary" in value for value in environment.values())
    assert needed.items() <= environment.items()
