"""No password, token, key or prompt is in any log, any other file, any process's arguments or environment."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from chatsvc.resources import resource_path

pytestmark = [pytest.mark.system, pytest.mark.timeout(200)]

PROMPT = "canary-prompt-9d27 where is the treasure"
ANSWERED_TO_NOBODY = "canary-attempt-77aa"
WRONG_PASSWORD = "canary-wrong-password-31f0"
BROKEN_TOKEN = "eyJhbGciOiJIUzI1NiJ9.canarybody5c.canarysignature8e"


@pytest.fixture(scope="module")
def secrets(service) -> dict[str, str]:
    """What a day brings: logins, a key, chats, mistakes. By name, every secret that was used."""
    key = service.home.run("key", "create", "--name", "tool", "--scope", "chat", "--account", "alice").stdout.strip()
    with service.client() as client:
        login = client.post("/login", json={"username": "alice", "password": "canary-password-4fb1c7"}).json()
        bearer = {"Authorization": f"Bearer {login['access_token']}"}
        body = {"query": PROMPT, "max_tokens": 4}
        assert client.post("/chat", json=body, headers=bearer).status_code == 200
        assert client.post("/chat", json=body, headers={"X-Api-Key": key}).status_code == 200
        client.post("/chat/stream", json=body, headers=bearer).read()
        client.post("/chat", json={**body, "max_tokens": -1}, headers=bearer)
        client.post("/chat", content=b'{"query": "' + PROMPT.encode(), headers=bearer)
        client.post("/login", json={"username": ANSWERED_TO_NOBODY, "password": WRONG_PASSWORD})
        client.get("/me", headers={"Authorization": f"Bearer {BROKEN_TOKEN}"})
        client.get("/me", headers={"X-Api-Key": key[:-4] + "zzzz"})
        refreshed = client.post("/refresh", headers={"Authorization": f"Bearer {login['refresh_token']}"}).json()
    return {
        "password": "canary-password-4fb1c7",
        "wrong password": WRONG_PASSWORD,
        "attempted name": ANSWERED_TO_NOBODY,
        "prompt": "canary-prompt-9d27",
        "access token": login["access_token"].rsplit(".", 1)[1],
        "refresh token": login["refresh_token"].rsplit(".", 1)[1],
        "next access token": refreshed["access_token"].rsplit(".", 1)[1],
        "broken token": "canarysignature8e",
        "key's secret": key.rsplit("_", 1)[1],
    }


def in_files(directory: Path, secret: str) -> list[str]:
    return [
        str(path)
        for path in directory.rglob("*")
        if path.is_file()
        and not path.is_symlink()
        and "models" not in path.parts
        and secret.encode() in path.read_bytes()
    ]


def test_no_file_but_the_database_holds_a_secret_and_that_one_only_prompts(service, secrets) -> None:
    places = [service.home.path, Path(service.home.settings["CHATSVC_SERVER__SOCKET"]).parent]
    for what, secret in secrets.items():
        found = [path for place in places for path in in_files(place, secret)]
        if what in {"prompt", "attempted name"}:  # conversations live in the database, throttled names as keyed hashes
            found = [path for path in found if not Path(path).name.startswith("chatsvc.db")]
        assert found == [], what


def test_no_process_shows_a_secret_in_its_arguments_or_environment(service, secrets) -> None:
    pids = [service.serve.process.pid, *service.pids()["engine"], *service.pids()["web"]]
    for pid in pids:
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                shown = Path(f"/proc/{pid}/{name}").read_bytes()
                assert [what for what, secret in secrets.items() if secret.encode() in shown] == []


def test_no_process_that_knows_a_secret_may_leave_a_core_file(service, secrets) -> None:
    assert secrets
    for pid in [*service.pids()["engine"], *service.pids()["web"]]:
        limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
        (core,) = (line.split()[4:6] for line in limits if line.startswith("Max core file size"))
        assert core == ["0", "0"], pid


def test_the_web_processes_may_not_be_looked_into(service) -> None:
    """What a worker inherits of the hook that gunicorn's first process calls. Root may look all the same."""
    code = (
        "import ctypes, os, runpy, sys; runpy.run_path(sys.argv[1])['on_starting'](None);"
        "os.fork() == 0 and os._exit(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0));"  # PR_GET_DUMPABLE
        "sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))"
    )
    command = [sys.executable, "-c", code, str(resource_path("config/gunicorn.conf.py"))]
    assert subprocess.run(command, env=service.home.environment, check=False).returncode == 0
    without = [*command[:2], code.replace("['on_starting'](None)", ""), command[3]]
    assert subprocess.run(without, env=service.home.environment, check=False).returncode == 1


def test_no_answer_repeats_a_secret(service, secrets) -> None:
    with service.client() as client:
        bearer = {"Authorization": f"Bearer {service.token()}"}
        answers = [
            client.post("/login", json={"username": ANSWERED_TO_NOBODY, "password": WRONG_PASSWORD}),
            client.post("/login", json={"username": ANSWERED_TO_NOBODY, "password": WRONG_PASSWORD, "more": 1}),
            client.post("/login", content=b'{"password": "' + WRONG_PASSWORD.encode()),
            client.post("/password", json={"current": WRONG_PASSWORD, "new": "short"}, headers=bearer),
            client.post("/chat", json={"query": PROMPT, "max_tokens": -1}, headers=bearer),
            client.post("/chat", json={"query": PROMPT, "top_p": 7}, headers=bearer),
            client.post("/chat", content=b'{"query": "' + PROMPT.encode(), headers=bearer),
            client.get("/me", headers={"Authorization": f"Bearer {BROKEN_TOKEN}"}),
            client.get("/me", headers={"X-Api-Key": secrets["key's secret"]}),
        ]
    for answer in answers:
        assert 400 <= answer.status_code < 500
        told = answer.text + str(answer.headers)
        assert [what for what, secret in secrets.items() if secret in told] == [], answer.text


def test_the_logs_tell_of_all_these_requests(service, secrets) -> None:
    assert secrets
    for path in ('"path": "/login"', '"path": "/chat"', '"path": "/refresh"'):
        assert path in service.serve.text
    assert '"path":"/chat"' in (service.home.path / "nginx-access.log").read_text()
