"""Fifty people who log in at once: all of them come in, nobody else is kept waiting, and memory stays bounded.

The bounds are generous, because the machine may be busy; ``python -m bench.logins`` measures.
"""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

NUM_LOGINS = 50
BODY = {"username": "alice", "password": "alice's long password"}


@pytest.fixture(scope="module")
def dear(serve, tmp_path_factory):
    """A server whose hashes cost what they cost by default."""
    cost = {"CHATSVC_ACCOUNTS__ARGON2_MEMORY_KIB": "19456", "CHATSVC_ACCOUNTS__ARGON2_TIME_COST": "3"}
    with serve(tmp_path_factory.mktemp("dear"), **cost) as started:
        yield started


def worker_of(server):
    """gunicorn's one worker, which holds the application."""
    (child,) = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    return int(child)


def anonymous_mib(pid):
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("RssAnon:")) / 1024


def test_fifty_logins_at_once_are_served_while_health_answers_and_memory_stays(dear):
    worker, done = worker_of(dear), threading.Event()
    before = anonymous_mib(worker)
    health, sizes = [], []

    def watch():
        with httpx.Client(base_url=dear.url, timeout=30) as client:
            while not done.is_set():
                started = time.monotonic()
                health.append((client.get("/healthz").status_code, time.monotonic() - started))
                sizes.append(anonymous_mib(worker))

    def log_in(_):
        return httpx.post(f"{dear.url}/login", json=BODY, timeout=60).status_code

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(NUM_LOGINS) as pool:
        statuses = list(pool.map(log_in, range(NUM_LOGINS)))
    done.set()
    watcher.join()
    assert statuses == [200] * NUM_LOGINS
    assert {status for status, _ in health} == {200}
    assert sorted(seconds for _, seconds in health)[len(health) // 2] < 5
    assert max(sizes) - before < 150


def test_an_unknown_account_and_a_wrong_password_get_the_same_answer(dear):
    answers = set()
    for name in ("alice", "nobody"):
        body = json.dumps({"username": name, "password": "a wrong password, surely"})
        answer = httpx.post(f"{dear.url}/login", content=body, headers={"Content-Type": "application/json"})
        told = {key: value for key, value in answer.headers.items() if key not in ("x-request-id", "date")}
        answers.add((answer.status_code, answer.content, json.dumps(told, sort_keys=True)))
    assert len(answers) == 1
    assert answers.pop()[0] == 401
