"""The audit log of the real service: a disk that fills up, a web process that is killed again and again, an export."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace

import httpx
import pytest

from bench import kills
from bench.load import asking

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(300)]

QUERY = {"query": "What is the capital of France?", "max_tokens": 3, "temperature": 0}


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    """A file system of 2 MiB for the log alone."""
    place = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture(scope="module")
def audited(boot_service, small_disk):
    """A service of these tests' own, whose log is on the small disk."""
    return boot_service(AUDIT__DIRECTORY=str(small_disk / "audit"))


def steps(client, headers) -> list[str]:
    """What the engine says it has done."""
    text = client.get("/metrics", headers=headers).text
    return [line for line in text.splitlines() if line.startswith("chatsvc_engine_steps ")]


def is_healthy(service) -> bool:
    with suppress(httpx.TransportError):
        return service.health() == 200
    return False


def records(service, **wanted) -> list[dict]:
    shown = service.home.run("audit", "show", "--json", "-n", "0").stdout.splitlines()
    return [each for line in shown if wanted.items() <= (each := json.loads(line)).items()]


def test_a_full_disk_gives_503_and_no_generation_and_it_recovers(audited, small_disk, until) -> None:
    headers = audited.headers()
    ballast = small_disk / "ballast"
    with audited.client() as client:
        assert client.post("/chat", json=QUERY, headers=headers).status_code == 200
        root = audited.headers("root")
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        # The last page of the segment may take a few records yet.
        until(lambda: client.post("/chat", json=QUERY, headers=headers).status_code == 503, 60, "the refusal")
        before = steps(client, root)
        for path, body in (
            ("/chat", QUERY),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
        ):
            answer = client.post(path, json=body, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "audit_unavailable")
            assert answer.headers["Retry-After"]
        assert steps(client, root) == before
        assert client.get("/healthz").status_code == 503
        ballast.unlink()
        until(lambda: client.get("/healthz").status_code == 200, 30, "recovery")
        assert client.post("/chat", json=QUERY, headers=headers).status_code == 200
    assert records(audited, action="audit.resumed")


def test_a_web_process_killed_under_load_loses_no_record_of_what_was_answered(audited, until) -> None:
    headers = audited.headers()
    answered: list[str] = []

    def ask() -> None:
        with suppress(httpx.TransportError), audited.client() as client:
            answer = client.post("/chat", json=QUERY, headers=headers)
            if answer.status_code == 200:
                answered.append(answer.headers["X-Request-Id"])

    with asking(ask, 4):
        for number in range(4):
            until(lambda: is_healthy(audited), 90, "the web process's return")
            asked = len(answered)
            until(lambda asked=asked: len(answered) > asked + 2, 90, "answers")
            web = sorted(audited.pids()["web"])
            for pid in web[-1:] if number % 2 else web:  # the worker alone, or its master too
                os.kill(pid, signal.SIGKILL)
        until(lambda: is_healthy(audited), 90, "the web process's return")
    ended = {each["request_id"] for each in records(audited, stage="end", action="chat.generate", outcome="allowed")}
    assert answered
    assert set(answered) <= ended
    begun = {each["seq"] for each in records(audited, stage="begin")}
    assert begun == {each["begin"] for each in records(audited, stage="end")}, "no orphan stays open"
    assert audited.home.run("audit", "verify").returncode == 0


def test_an_export_over_the_wire_verifies_where_nothing_else_is(audited, tmp_path) -> None:
    with audited.client() as client:
        headers = audited.headers("root")
        assert client.get("/admin/audit/export", headers=audited.headers()).status_code == 403
        answer = client.get("/admin/audit/export", params={"from": "2020-01-01"}, headers=headers)
        assert answer.status_code == 200, answer.text
    (tmp_path / "export.jsonl").write_bytes(answer.content)
    elsewhere = replace(audited.home, path=tmp_path / "nothing", settings={})
    told = elsewhere.run("audit", "verify", str(tmp_path / "export.jsonl"), check=False)
    assert told.returncode == 6  # whole, but nobody here knows whose it is
    assert "UNTRUSTED key:" in told.stdout
    key = str(audited.home.path / "keys" / "audit-signing.pub")
    assert "clean" in elsewhere.run("audit", "verify", str(tmp_path / "export.jsonl"), "--key", key).stdout


def test_a_stop_signs_everything(audited) -> None:
    assert audited.serve.stop() == 0
    verified = json.loads(audited.home.run("audit", "verify", "--json").stdout)
    assert [each["num_covered"] == each["num_records"] for each in verified["logs"]] == [True] * len(verified["logs"])
    assert verified["logs"][0]["num_open"] == 0


def test_gunicorn_killed_again_and_again_loses_nothing_that_a_client_relied_on(tmp_path) -> None:
    """The hundred are ``python -m bench.kills``; here it is done six times."""
    result = kills.run(tmp_path / "home", times=6, num_clients=4)
    assert result["answered"]
    assert result["streams_begun"]
    assert {name: result[name] for name in kills.MUST_BE_EMPTY if result[name]} == {}


WEB = [sys.executable, "-m", "chatsvc.cli.main", "serve", "--only", "web"]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_disk_that_fails_gives_503_until_a_restart_and_loses_nothing(make_home, start, until, free_port) -> None:
    """What docs/reference/audit-format.md says of an fsync error, in the real web process; the kernel injects it."""
    port, password = str(free_port()), "alice's long password"
    home = make_home("failing", GUARD__ALLOWED_NETWORKS='["127.0.0.1"]', SERVER__PORT=port)
    home.add_account("alice", password, "user")

    def log_in() -> httpx.Response:
        return httpx.post(f"http://127.0.0.1:{port}/login", json={"username": "alice", "password": password})

    def lives() -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{port}/livez").status_code == 200
        return False

    def served(*prefix: str):
        program = start([*prefix, *WEB], home.environment, home.path.parent / "web.log")
        until(lambda: program.process.poll() is not None or lives(), 60, "the web process")
        assert program.process.poll() is None, program.text
        return program

    served().stop()
    (segment,) = (home.path / "audit").glob("audit-*.jsonl")
    fault = ("-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=12+", "-P", str(segment))
    service = served("strace", "-D", "-f", "-qq", "-o", "/dev/null", *fault)
    answers: list[httpx.Response] = []
    until(lambda: answers.append(log_in()) or answers[-1].status_code != 200, 60, "the fault")
    assert (answers[-1].status_code, answers[-1].json()["error"]["code"]) == (503, "audit_unavailable")
    assert log_in().status_code == 503
    health = httpx.get(f"http://127.0.0.1:{port}/healthz")
    assert health.status_code == 503
    assert health.json()["reason"].startswith("the audit log cannot be written")
    assert str(home.path) not in health.text
    service.stop()

    service = served()
    assert log_in().status_code == 200
    service.stop()
    shown = home.run("audit", "show", "--action", "auth.login", "--json", "-n", "0").stdout.splitlines()
    allowed = {each["request_id"] for line in shown if (each := json.loads(line))["outcome"] == "allowed"}
    acknowledged = {answer.headers["X-Request-Id"] for answer in answers if answer.status_code == 200}
    assert acknowledged
    assert acknowledged <= allowed
    assert home.run("audit", "verify").returncode == 0
