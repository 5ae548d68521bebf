"""`chatsvc quickstart`, which is `make run`: the first thing that anybody tries."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

QUICKSTART = [sys.executable, "-m", "chatsvc.cli.main", "quickstart"]


@pytest.fixture
def quickstart(make_home, start, free_port) -> Callable[..., tuple]:
    """``quickstart(home, PORT="…")``: started, and ready when it returns; gives the program and its address."""

    def run(home=None, *, wait: bool = True, **environment: str) -> tuple:
        home = home or make_home("quick")
        given = {"PORT": str(free_port()), **environment}
        program = start(QUICKSTART, {**home.environment, **given}, home.path.parent / "quickstart.log")
        if wait:
            deadline = time.monotonic() + 120
            while "chatsvc is ready at" not in program.text[program.text.rfind("Starting the engine") :]:
                assert program.process.poll() is None, program.text
                assert time.monotonic() < deadline, program.text
                time.sleep(0.1)
        return home, program, f"http://127.0.0.1:{given['PORT']}"

    return run


def printed_command(text: str) -> str:
    return next(line.strip() for line in text.splitlines() if line.strip().startswith("curl"))


def test_from_nothing_to_paris_and_a_quick_second_start(quickstart, until) -> None:
    home, program, address = quickstart()
    assert address in program.text

    pasted = subprocess.run(
        ["sh", "-c", printed_command(program.text)], check=False, capture_output=True, text=True, timeout=60
    )
    assert "Paris" in "".join(re.findall(r'"token": ?"([^"]*)"', pasted.stdout)), pasted
    assert "event: done" in pasted.stdout

    password_file = home.path / "admin-password"
    password = password_file.read_text()
    assert stat.S_IMODE(password_file.stat().st_mode) == 0o400
    assert password.endswith("\n")
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    with httpx.Client(base_url=address) as client:
        assert client.get("/readyz").status_code == 200
        assert client.get("/").status_code == 200
        login = client.post("/login", json={"username": "admin", "password": password.rstrip("\n")})
        assert login.status_code == 200

    children = set(descendants(program.process.pid))
    assert program.stop(signal.SIGTERM) == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    assert "audit seal-key --output DIR" in program.text
    assert "trusted key (keys/):" in home.run("audit", "verify").stdout
    home.run("audit", "seal-key", "--drop")
    assert not list(home.path.rglob("*.initial"))

    (log := program.log).write_text("")
    started = time.monotonic()
    _, again, _ = quickstart(home)
    assert time.monotonic() - started < 60
    assert "Importing the embedded" not in again.text
    assert "seal-key" not in again.text
    assert password_file.read_text() == password
    assert log.exists()
    assert again.stop(signal.SIGINT) == 0


def descendants(pid: int) -> list[int]:
    output = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in output.splitlines()]
    found, left = [], [pid]
    while left:
        parent = left.pop()
        below = [child for child, its_parent in pairs if its_parent == parent]
        found += below
        left += below
    return found


def test_two_homes_serve_side_by_side_each_with_its_own_list(quickstart, until) -> None:
    home, first, one = quickstart()
    _, second, other = quickstart(CHATSVC_GUARD__ALLOWED_NETWORKS='["127.0.0.5/32"]', CHATSVC_ENGINE__MAX_NUM_SEQS="2")
    assert httpx.get(f"{one}/readyz").status_code == 200
    assert httpx.get(f"{other}/readyz").status_code == 403, "the environment overrides the list that was written"
    with httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.5")) as client:
        assert client.get(f"{other}/readyz").status_code == 200

    refused = home.run("quickstart", check=False)
    assert refused.returncode == 3
    assert f"is served already by process {first.process.pid}" in refused.stderr

    children = descendants(second.process.pid)
    assert len(children) >= 3
    os.kill(second.process.pid, signal.SIGKILL)
    second.process.wait()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), 20, "the end of a killed one's children")
    assert httpx.get(f"{one}/readyz").status_code == 200
    assert first.stop() == 0


def test_a_port_that_is_taken_is_said_in_one_sentence(quickstart) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        _, program, _ = quickstart(wait=False, PORT=str(taken.getsockname()[1]))
        assert program.process.wait(60) == 3
    assert "choose another" in program.text
    assert "Traceback" not in program.text


def test_a_wrong_configuration_is_told_whole_before_anything_starts(quickstart) -> None:
    _, program, _ = quickstart(wait=False, PORT="http", CHATSVC_CHAT__DEADLINE_S="never")
    assert program.process.wait(60) == 3
    assert "server.port" in program.text
    assert "chat.deadline_s" in program.text


def test_weights_that_are_refused_at_start_end_it_with_an_error(make_home, quickstart) -> None:
    home = make_home("refused")
    home.bring_model()
    weights = home.path / "models" / "current" / "model.gguf"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.chmod(0o600)
    weights.write_bytes(content)
    _, program, _ = quickstart(home, wait=False)
    assert program.process.wait(90) == 3
    assert "not loaded" in program.text, program.text


def test_a_stop_before_it_serves_is_a_clean_end(make_home, start, until, free_port) -> None:
    home = make_home("early")
    program = start(QUICKSTART, {**home.environment, "PORT": str(free_port())}, home.path.parent / "quickstart.log")
    until(lambda: "Importing the embedded" in program.text)
    assert program.stop(signal.SIGTERM) == 0
