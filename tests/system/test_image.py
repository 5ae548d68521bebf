"""The container image, built without a Docker engine and started the way compose.yaml starts it.

Debian's buildah builds it in a chroot on a base made by debootstrap. What compose adds beside it (cgroups, networks, read-only
roots) is not shown here. Several minutes, so only `make test-image` runs it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.image, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAMS = ("buildah", "debootstrap")
BASE = "localhost/chatsvc-test-base"
IMAGE = "localhost/chatsvc-test"
# How this machine reaches its package index: the build and the start see it, the image keeps none of it.
NETWORK = ("/etc/pip.conf", "/etc/ssl/certs", "/etc/resolv.conf", "/etc/hosts")
ASK = """
import json, sys, httpx
client = httpx.Client(transport=httpx.HTTPTransport(uds="/run/chatsvc/web.sock"), base_url="http://chat.test", timeout=60,
                      headers={"X-Forwarded-For": "172.31.250.1"})
password = open("/var/lib/chatsvc/admin-password").read().strip()
login = client.post("/login", json={"username": "admin", "password": password})
token = {"Authorization": f"Bearer {login.json()['access_token']}"}
answer = client.post("/chat", json={"query": "What is the capital of France?", "temperature": 0}, headers=token)
print(json.dumps({"ready": client.get("/readyz").status_code, "result": answer.json().get("result", answer.text)}))
"""


def run(*command: str, **more) -> str:
    environment = {**os.environ, "BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs"}
    result = subprocess.run(
        command, env=environment, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, **more
    )
    assert result.returncode == 0, f"{command}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    return result.stdout.strip()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The root file system of a container of the built image."""
    if os.geteuid() != 0 or not all(shutil.which(program) for program in PROGRAMS):
        pytest.skip(f"needs root and {', '.join(PROGRAMS)}")
    folder = tmp_path_factory.mktemp("base")
    run("debootstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates", "bookworm", str(folder))
    made = run("buildah", "from", "scratch")
    run("buildah", "add", "-q", made, str(folder), "/")
    run("buildah", "commit", "-q", "--rm", made, BASE)
    shutil.rmtree(folder)
    mounts = [option for path in NETWORK if Path(path).exists() for option in ("--volume", f"{path}:{path}:ro")]
    run("buildah", "build", "--build-arg", f"BASE={BASE}", *mounts, "-t", IMAGE, str(ROOT))
    container = run("buildah", "from", IMAGE)
    try:
        yield Path(run("buildah", "mount", container))
    finally:
        run("buildah", "rm", container)
        run("buildah", "rmi", "-f", IMAGE, BASE)


@pytest.fixture(scope="module")
def start(root: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts a service of compose.yaml inside the root: its account, groups, command and environment."""
    services = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
    image = {
        "PATH": "/opt/chatsvc/bin:/usr/bin:/bin", "CHATSVC_HOME": "/var/lib/chatsvc", "PYTHONDONTWRITEBYTECODE": "1",
        "CHATSVC_SERVER__SOCKET": "/run/chatsvc/web.sock", "CHATSVC_ENGINE__SOCKET": "/run/chatsvc-engine/engine.sock",
        **{name: value for name, value in os.environ.items() if name == "PIP_CERT"},
    }  # fmt: skip
    running: list[subprocess.Popen] = []
    mounts = {path: path for path in ("/proc", "/dev", "/dev/shm", *NETWORK) if Path(path).exists()}
    mounts[f"{root}/var/lib/chatsvc/models"] = "/var/lib/chatsvc-engine/models"
    for source, target in mounts.items():
        if not Path(source).is_dir():
            Path(f"{root}{target}").touch()
        run("mount", "--bind", source, f"{root}{target}")

    def start_service(name: str) -> subprocess.Popen:
        service = services[name]
        uid, gid = service.get("user", "10001:10001").split(":")
        groups = ",".join([gid, *service.get("group_add", [])])
        environment = {**image, **service["environment"]}
        environment = {key: text(value) for key, value in environment.items()}
        variables = [f"{key}={value}" for key, value in environment.items()]
        command = ["chroot", f"--userspec={uid}:{gid}", f"--groups={groups}", str(root), "env", "-i", *variables]
        process = subprocess.Popen(
            [*command, *service["command"]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        running.append(process)
        return process

    def text(value: str) -> str:
        """A compose variable at its default."""
        return value.split(":-", 1)[1].removesuffix("}") if value.startswith("${") else value

    try:
        yield start_service
    finally:
        for process in reversed(running):
            process.terminate()
            process.communicate(timeout=60)
        for target in reversed(mounts.values()):
            run("umount", f"{root}{target}")


def test_the_services_of_compose_start_and_chat(root: Path, start: Callable[..., subprocess.Popen]) -> None:
    setup = start("setup")
    output, _ = setup.communicate(timeout=600)
    assert setup.returncode == 0, output.decode()
    engine, web = start("engine"), start("web")
    socket = root / "run/chatsvc/web.sock"
    deadline = time.monotonic() + 120
    result = subprocess.CompletedProcess((), 1, "", "")
    while result.returncode != 0 and time.monotonic() < deadline:
        for process in (engine, web):
            assert process.poll() is None, process.communicate()[0].decode()
        time.sleep(1)
        if socket.exists():
            command = ["chroot", "--userspec=10001:10001", str(root), "/opt/chatsvc/bin/python", "-c", ASK]
            result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["ready"] == 200
    assert "Paris" in answer["result"]
    assert {process: owner(process.pid) for process in (engine, web)} == {engine: 10002, web: 10001}


def owner(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1])


@pytest.mark.parametrize("path", ["/var/lib/chatsvc/chatsvc.db", "/var/lib/chatsvc/keys", "/var/lib/chatsvc/audit", "/run/chatsvc"])  # fmt: skip
def test_the_engine_cannot_read_what_is_the_web_process_s(root: Path, path: str) -> None:
    command = ["chroot", "--userspec=10002:10002", str(root), "/bin/ls", path]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert "Permission denied" in result.stderr


def test_no_torch_and_no_build_tool_is_in_the_image(root: Path) -> None:
    packages = {path.name for path in (root / "opt/chatsvc/lib/python3.11/site-packages").iterdir()}
    assert packages & {"torch", "ziglang", "hatchling", "pytest"} == set()
    assert packages >= {"flask", "ldap3", "psycopg", "redis", "modelscope"}
