"""`chatsvc doctor`: each finding is true and names its remedy."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chatsvc.audit.format.notes import Signer, format_vkey
from chatsvc.audit.keys import drop, initial_seals
from chatsvc.audit.log import AuditLog
from chatsvc.cli.checks import doctor_checks as checks
from chatsvc.cli.main import main
from chatsvc.disk import pidfile
from chatsvc.engine.runners.native import library
from chatsvc.settings.load import Settings, load
from chatsvc.supervisor import cgroup
from chatsvc.wiring import audit_options


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    home = tmp_path / "home"
    (home / "keys").mkdir(parents=True, mode=0o700)
    home.chmod(0o700)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return load(
        {
            "CHATSVC_HOME": str(home),
            "CHATSVC_SERVER__PORT": str(port),
            "CHATSVC_GUARD__ALLOWED_NETWORKS": '["127.0.0.1"]',
        }
    )


def levels(findings) -> dict[str, str]:
    found = {}
    for finding in findings:
        assert bool(finding.remedy) == (finding.level != "good"), finding
        found[finding.check] = finding.level
    return found


def test_a_good_machine_has_nothing_to_mend(settings: Settings) -> None:
    found = [*checks.python(), *checks.clock(settings), *checks.network(settings), *checks.permissions(settings)]
    assert set(levels(found).values()) == {"good"}


def test_an_old_python_is_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_LEAST_PYTHON", (9, 0))
    assert levels(checks.python()) == {"python": "fatal"}


def test_packages_are_compared_with_what_was_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["click==0.0.1", "no-such-package==1", "rich", "torch==1; extra == 'torch'"]
    monkeypatch.setattr(checks.importlib.metadata, "requires", lambda _name: wanted)
    found = list(checks.packages())
    assert [(finding.level, finding.message.split()[0]) for finding in found] == [
        ("warning", "click"),
        ("fatal", "no-such-package"),
    ]
    monkeypatch.setattr(checks.importlib.metadata, "requires", lambda _name: ["rich"])
    assert levels(checks.packages()) == {"packages": "good"}


@pytest.mark.parametrize(
    ("wanted", "missing", "level", "message"),
    [
        ("auto", "", "good", "native"),
        ("auto", "the processor has no avx512_vnni", "good", "openvino, because the processor has no avx512_vnni"),
        ("native", "", "good", "native, because engine.runner says so"),
        ("native", "no avx512_vnni", "fatal", "engine.runner = native cannot serve here: no avx512_vnni"),
        ("openvino", "no avx512_vnni", "good", "openvino, because engine.runner says so"),
        ("torch", "", "good", "torch, because engine.runner says so"),
    ],
)  # fmt: skip
def test_the_runner_that_serves_here_is_named(settings, monkeypatch, wanted, missing, level, message) -> None:
    monkeypatch.setattr(library, "missing", lambda: missing)
    engine = settings.engine.model_copy(update={"runner": wanted})
    (finding,) = checks.runner(settings.model_copy(update={"engine": engine}))
    assert (finding.level, finding.message, bool(finding.remedy)) == (level, message, level == "fatal")


def test_a_processor_without_fast_instructions_is_told(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags : fpu sse2\n")
    assert levels(checks.processor(cpuinfo)) == {"processor": "warning"}
    cpuinfo.write_text("flags : fpu avx2\n")
    assert levels(checks.processor(cpuinfo)) == {"processor": "good"}
    assert levels(checks.processor(tmp_path / "missing")) == {"processor": "warning"}


def test_little_memory_and_little_disk_are_told(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert levels(checks.memory_and_disk(settings)).keys() == {"memory", "disk"}
    monkeypatch.setattr(cgroup, "available_bytes", lambda: 5)
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _path: type("Usage", (), {"free": 5}))
    assert levels(checks.memory_and_disk(settings)) == {"memory": "warning", "disk": "warning"}


def test_a_wrong_clock_is_fatal(settings: Settings) -> None:
    assert levels(checks.clock(settings, now=0.0)) == {"clock": "fatal"}
    settings.audit_directory.mkdir()
    record = settings.audit_directory / "segment"
    record.touch()
    os.utime(record, (time.time() + 9999, time.time() + 9999))
    (finding,) = checks.clock(settings)
    assert "future" in finding.message


def test_an_empty_allow_list_and_a_taken_port_are_fatal(settings: Settings) -> None:
    nobody = settings.model_copy(update={"guard": settings.guard.model_copy(update={"allowed_networks": []})})
    with socket.create_server(("127.0.0.1", settings.server.port)):
        assert levels(checks.network(nobody)) == {"port": "fatal"}
    (finding,) = checks.configuration(nobody)
    assert (finding.level, "nobody could connect" in finding.message) == ("fatal", True)


def test_a_port_that_we_serve_on_ourselves_is_good(settings: Settings) -> None:
    with pidfile.hold(settings.home), socket.create_server(("127.0.0.1", settings.server.port)):
        assert levels(checks.network(settings))["port"] == "good"


def test_a_unix_socket_needs_no_port(settings: Settings, tmp_path: Path) -> None:
    behind = settings.model_copy(update={"server": settings.server.model_copy(update={"socket": tmp_path / "s"})})
    assert levels(checks.network(behind))["port"] == "good"


def test_keys_that_others_can_read_are_fatal(settings: Settings) -> None:
    key = settings.keys_directory / "signing"
    key.touch(mode=0o644)
    key.chmod(0o644)
    (finding,) = checks.permissions(settings)
    assert finding.level == "fatal"
    assert finding.remedy == f"chmod go-rwx '{key}'"


def test_a_public_key_may_be_read_by_others(settings: Settings) -> None:
    key = settings.keys_directory / "model-signing.pub"
    key.touch()
    key.chmod(0o444)
    assert levels(checks.permissions(settings))["permissions"] == "good"


def test_a_missing_home_and_a_missing_key_are_told(settings: Settings, tmp_path: Path) -> None:
    missing = settings.model_copy(update={"home": tmp_path / "none"})
    assert levels(checks.permissions(missing)) == {"home": "warning"}
    models = settings.models.model_copy(update={"kek_file": tmp_path / "no-kek"})
    assert levels(checks.configuration(settings.model_copy(update={"models": models}))) == {"configuration": "fatal"}


def test_a_missing_and_a_damaged_model_are_fatal(settings: Settings) -> None:
    assert levels(checks.model(settings)) == {"model": "fatal"}
    folder = settings.models_directory / "broken"
    folder.mkdir(parents=True)
    (settings.models_directory / "current").symlink_to("broken")
    assert levels(checks.model(settings)) == {"model": "fatal"}


def test_the_command_ends_with_1_where_something_is_fatal(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    monkeypatch.setenv("CHATSVC_HOME", str(settings.home))
    monkeypatch.setenv("CHATSVC_SERVER__PORT", str(settings.server.port))
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert "FAIL  configuration: guard.allowed_networks is empty, so nobody could connect" in result.output
    assert "      -> " in result.output


def test_the_command_speaks_json(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    monkeypatch.setenv("CHATSVC_HOME", str(settings.home))
    findings = json.loads(CliRunner().invoke(main, ["doctor", "--json"]).stdout)["findings"]
    assert {"check", "level", "message", "remedy"} == set(findings[0])


def test_a_wrong_configuration_is_a_finding_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHATSVC_HOME", str(tmp_path))
    monkeypatch.setenv("CHATSVC_SERVER__PORT", "x")
    monkeypatch.setenv("CHATSVC_CHAT__DEADLINE_S", "x")
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert result.output.count("FAIL  configuration") == 2


def test_a_first_sealing_key_on_this_machine_and_a_key_of_nobody_are_told(settings: Settings) -> None:
    assert levels(checks.audit_keys(settings)) == {"audit seal": "good"}  # no log was begun
    AuditLog.open(audit_options(settings)).close()
    (seal,) = checks.audit_keys(settings)
    assert (seal.level, seal.check) == ("warning", "audit seal")
    assert "seal-key --output DIR" in seal.remedy
    assert "seal-key --drop" in seal.remedy
    for path in initial_seals(settings.keys_directory):
        drop(path)
    assert levels(checks.audit_keys(settings)) == {"audit seal": "good"}
    stranger = Signer("chatsvc.local/audit/" + "0" * 32, Ed25519PrivateKey.generate()).verifier_key
    with (settings.audit_directory / "audit.vkey").open("a") as file:
        file.write(format_vkey(stranger) + "\n")
    *_, found = checks.audit_keys(settings)
    assert (found.level, found.check) == ("fatal", "audit keys")
    assert stranger.fingerprint in found.message


def test_keys_that_may_not_be_looked_at_are_no_finding_here(settings: Settings) -> None:
    settings.keys_directory.rmdir()
    assert list(checks.audit_keys(settings)) == []
