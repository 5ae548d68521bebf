"""The project's own files agree with each other."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from tests.conftest import LONGEST
from tools import lock

ROOT = Path(__file__).resolve().parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
UNITS = sorted((ROOT / "systemd").glob("*.service"))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def direct() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(text) for group in (PROJECT["dependencies"], *extras) for text in group]


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {normal(name): version.strip() for name, version in pairs}


def test_every_dependency_is_pinned_and_the_constraints_agree() -> None:
    pinned = constraints()
    for requirement in direct():
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", requirement
        assert pinned.get(normal(requirement.name)) == specifier.version, requirement


def test_every_direct_dependency_has_its_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = text.split("dependencies = [", 1)[1].split("\n]", 1)[0]
    assert [line for line in block.splitlines() if line.strip().startswith('"') and "#" not in line] == []


def test_make_prints_its_targets() -> None:
    output = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("run", "test", "test-fast", "check", "fix", "bench", "docs"):
        assert f"make {target} " in output


def test_ci_calls_make_test_and_nothing_else() -> None:
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith("#")]
    assert lines == [
        "set -euo pipefail",
        'cd "$(dirname "${BASH_SOURCE[0]}")/.."',
        'export CI="${CI:-true}"',
        "exec make test </dev/null",
    ]


def test_the_workflow_runs_the_two_commands_of_a_contributor() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert [command for command in commands if command.startswith("make ")] == ["make test-fast", "make test"]


def test_hooks_before_a_commit_run_what_is_installed_and_fetch_nothing() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        assert hook["entry"].startswith(".venv/bin/")


def test_a_failed_test_is_tried_again_in_ci_only() -> None:
    def command(**environment: str) -> str:
        given = {"PATH": os.environ["PATH"], **environment}
        output = subprocess.run(
            ["make", "-n", "test-fast"], cwd=ROOT, env=given, capture_output=True, text=True, check=True
        ).stdout
        return next(line for line in output.splitlines() if "pytest" in line)

    assert "--reruns" not in command()
    assert "--reruns 1" in command(CI="true")


def test_the_longest_files_are_there() -> None:
    assert [name for name in LONGEST if not (ROOT / "tests" / name).is_file()] == []


def test_recipes_name_files_that_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:src|tests|docs|config|nginx|systemd|tools)/[^`\s]*|[\w.-]+\.(?:md|toml|yaml|txt))`", text)
    assert len(named) > 30
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_version_stands_in_one_place() -> None:
    version = PROJECT["version"].replace(".", r"\.")
    for name in ("Dockerfile", "compose.yaml", "src/chatsvc/__init__.py", "README.md"):
        assert not re.search(rf"chatsvc[:-]{version}|__version__", (ROOT / name).read_text(encoding="utf-8")), name
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_pages_that_are_made_from_the_code_are_what_the_code_says() -> None:
    code = (
        "import json, sys; sys.path.insert(0, 'tools'); import pages; "
        "json.dump({str(path): text for path, text in pages.pages().items()}, sys.stdout)"
    )
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for path, text in json.loads(output).items():
        assert Path(path).read_text(encoding="utf-8") == text, f"{path}: run `make docs`"


def compose() -> dict:
    return yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]


def test_only_nginx_and_the_setup_before_the_start_have_a_network() -> None:
    services = compose()
    assert set(services) == {"setup", "nginx", "web", "engine"}
    assert services["engine"]["network_mode"] == "none"
    assert services["web"]["network_mode"] == "none"
    assert services["nginx"]["depends_on"] == {"web": {"condition": "service_healthy"}}
    for name in ("web", "engine"):
        assert services[name]["depends_on"]["setup"] == {"condition": "service_completed_successfully"}


def test_every_volume_and_file_of_the_containers_is_there_or_made() -> None:
    document = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    for service in document["services"].values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert source in document["volumes"] or (ROOT / source).exists(), mount


def test_web_and_engine_run_under_accounts_of_their_own() -> None:
    assert compose()["engine"]["user"] == "10002:10002"
    assert compose()["web"]["group_add"] == ["10002"]
    engine, web = (options(ROOT / "systemd" / f"chatsvc-{name}.service") for name in ("engine", "web"))
    assert engine["User"] == ["chatsvc-engine"]
    assert web["User"] == ["chatsvc"]
    assert web["SupplementaryGroups"] == engine["Group"] == ["chatsvc-engine"]


@pytest.mark.parametrize("name", ["setup", "nginx", "web", "engine"])
def test_every_container_is_hardened(name: str) -> None:
    service = compose()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pids_limit"] == (512 if name == "web" else 256)
    assert service["ulimits"] == {"core": 0}
    assert service["stop_grace_period"] == "45s"
    assert service["mem_limit"] == service["memswap_limit"]
    assert any("noexec" in mount for mount in service["tmpfs"])


def test_the_image_is_lean_and_not_root() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    stages = re.findall(r"^FROM (\S+) AS (\w+)$", text, re.MULTILINE)
    assert stages == [("${BASE}", "build"), ("${BASE}", "runtime")]
    assert "torch" not in "".join(line for line in text.splitlines() if line.startswith("RUN"))
    runtime = text.split(" AS runtime")[1]
    assert "\nUSER 10001:10001\n" in runtime
    assert "HEALTHCHECK" in runtime
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        assert all((ROOT / name).exists() for name in source.split()), source


def options(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text(encoding="utf-8").splitlines():
        name, separator, value = line.partition("=")
        if separator and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_every_unit_is_hardened_and_has_no_network(unit: Path) -> None:
    has = options(unit)
    for name, value in {
        "PrivateNetwork": "yes",
        "RestrictAddressFamilies": "AF_UNIX",
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "LimitCORE": "0",
        "MemorySwapMax": "0",
        "CapabilityBoundingSet": "",
        "MemoryDenyWriteExecute": "no",
        "TimeoutStopSec": "45",
        "RestartSec": "10",
        "StartLimitBurst": "60",
    }.items():
        assert has[name] == [value], name


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_can_read_every_unit(unit: Path, tmp_path: Path) -> None:
    program = tmp_path / "chatsvc"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text(encoding="utf-8").replace("/opt/chatsvc/bin/chatsvc", str(program)))
    try:
        result = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("systemd-analyze is not installed")
    complaints = [line for line in result.stderr.splitlines() if unit.name in line]
    assert complaints == []


def test_make_test_installs_every_extra() -> None:
    installed = re.search(r"-e '\.\[([a-z,]+)\]'", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert installed is not None
    assert set(installed[1].split(",")) == set(PROJECT["optional-dependencies"])


def test_the_image_installs_what_the_lock_holds_and_every_file_of_it_has_a_hash() -> None:
    locked: dict[str, str] = {}
    for part in ("requirements.lock", "requirements-build.lock"):
        for block in re.split(r"\n(?=\S)", (ROOT / part).read_text(encoding="utf-8").strip()):
            if not block.startswith("#"):
                requirement = Requirement(block.split(" \\")[0])
                assert "--hash=sha256:" in block, requirement
                (specifier,) = requirement.specifier
                locked[normal(requirement.name)] = specifier.version
    serving = [
        *PROJECT["dependencies"],
        *(t for name in lock.SERVING_EXTRAS for t in PROJECT["optional-dependencies"][name]),
    ]
    for requirement in map(Requirement, serving):
        assert requirement.specifier.contains(locked[normal(requirement.name)]), f"{requirement}: run `make lock`"
    pinned = constraints()
    assert {name: version for name, version in locked.items() if pinned.get(name, version) != version} == {}
