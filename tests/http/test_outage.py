"""Two real web processes on one PostgreSQL and one Redis: one truth, and what happens when either does not answer."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest
from sqlalchemy import text

from chatsvc.store.database import Database

ALICE = {"username": "alice", "password": "alice's long password"}
ADMIN = {"username": "admin", "password": "an admin's long password"}
ASK = {"query": "Say hello.", "max_tokens": 4}
STORY = {
    "query": "Write a very long story about a ship.",
    "max_tokens": 2000,
    "temperature": 0,
}  # more than 1500 tokens


@pytest.fixture
def store(postgres):
    """The settings of an empty PostgreSQL."""
    database = Database(postgres.url)
    with database.session() as session:
        session.execute(text("DROP SCHEMA public CASCADE"))
        session.execute(text("CREATE SCHEMA public"))
    database.close()
    return {"CHATSVC_STORE__URL": postgres.url}


def bearer(server, body):
    answer = httpx.post(f"{server.url}/login", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


def ask(server):
    return httpx.post(f"{server.url}/chat", json=ASK, headers=server.headers, timeout=60)


def code_of(answer):
    """The status, and the code where it is an error's."""
    return answer.status_code, answer.json().get("error", {}).get("code")


def is_well(server):
    return httpx.get(f"{server.url}/healthz", timeout=10).status_code == 200 and ask(server).status_code == 200


def test_two_replicas_have_one_truth(serve, store, redis, tmp_path, events):
    given = {**store, "CHATSVC_STORE__REDIS_URL": redis.url}
    with ExitStack() as stack:
        here = stack.enter_context(serve(tmp_path / "here", **given))
        (tmp_path / "there").mkdir()
        shutil.copytree(tmp_path / "here" / "keys", tmp_path / "there" / "keys")
        there = stack.enter_context(serve(tmp_path / "there", **given))

        alice = bearer(here, ALICE)
        assert httpx.get(f"{there.url}/me", headers=alice).status_code == 200
        assert httpx.post(f"{here.url}/logout", headers=alice).status_code == 204
        assert httpx.get(f"{there.url}/me", headers=alice).status_code == 401

        admin, received = bearer(here, ADMIN), b""
        with httpx.stream("POST", f"{there.url}/chat/stream", json=STORY, headers=bearer(there, ALICE)) as answer:
            for chunk in answer.iter_raw():
                if not received:
                    disable = {"json": {"disabled": True}, "headers": admin}
                    assert httpx.patch(f"{here.url}/admin/accounts/alice", **disable).status_code == 200
                    disabled_at = time.monotonic()
                received += chunk
        took_s = time.monotonic() - disabled_at
        name, data = events(received)[-1]
        assert (name, data["error"]["type"]) == ("error", "authentication_error")
        assert took_s < 10  # it is looked at twice a second; the machine may be busy
        assert ask(here).status_code == ask(there).status_code == 401  # alice's keys as well


def test_a_postgresql_that_hangs_costs_503_and_nobody_else_anything(
    serve, store, postgres, tmp_path, events, wait_until
):
    with serve(tmp_path / "home", **store) as server:
        assert ask(server).status_code == 200
        stream, received = httpx.stream("POST", f"{server.url}/chat/stream", json=STORY, headers=server.headers), b""
        with stream as answer, ThreadPoolExecutor(40) as pool:
            chunks = answer.iter_raw()
            received += next(chunks)
            with postgres.hanging():
                asked = [pool.submit(ask, server) for _ in range(40)]
                lives = []
                while not all(one.done() for one in asked):
                    started_at = time.monotonic()
                    assert httpx.get(f"{server.url}/livez", timeout=30).status_code == 200
                    lives.append(time.monotonic() - started_at)
                    time.sleep(0.1)
                assert {code_of(one.result()) for one in asked} == {(503, "store_unavailable")}
                assert sorted(lives)[len(lives) // 4] < 0.5  # threads that wait keep nobody else waiting
                assert httpx.get(f"{server.url}/healthz").json()["reason"] == "the database cannot be reached"
                assert code_of(httpx.post(f"{server.url}/login", json=ALICE, timeout=30)) == (503, "store_unavailable")
                # What runs already ends as well: nobody can say any more whether it may go on.
                received += b"".join(chunks)
            name, data = events(received)[-1]
            assert (name, data["error"]["code"]) == ("error", "store_unavailable")
        wait_until(lambda: is_well(server), what="recovery")


def test_a_postgresql_that_is_stopped_costs_503_until_it_is_back(serve, store, postgres, tmp_path, wait_until):
    with serve(tmp_path / "home", **store) as server:
        token = bearer(server, ALICE)
        postgres.stop()
        try:
            for _ in range(3):
                assert code_of(ask(server)) == (503, "store_unavailable")
                assert code_of(httpx.post(f"{server.url}/login", json=ALICE, timeout=30)) == (503, "store_unavailable")
                assert code_of(httpx.get(f"{server.url}/me", headers=token, timeout=30)) == (503, "store_unavailable")
            assert httpx.get(f"{server.url}/me", headers={"Authorization": "Bearer a.b.c"}).status_code == 401
            wait_until(lambda: httpx.get(f"{server.url}/healthz").status_code == 503, what="health to say so")
        finally:
            postgres.start()
        wait_until(lambda: is_well(server), what="recovery")
        assert httpx.get(f"{server.url}/me", headers=token).status_code == 200


def test_a_redis_that_hangs_or_is_stopped_costs_503(serve, store, redis, tmp_path, wait_until):
    with serve(tmp_path / "home", **store, CHATSVC_STORE__REDIS_URL=redis.url) as server:
        assert ask(server).status_code == 200
        with redis.hanging(), ThreadPoolExecutor(20) as pool:
            asked = list(pool.map(lambda _: code_of(ask(server)), range(20)))
            assert set(asked) == {(503, "store_unavailable")}
            wait_until(
                lambda: httpx.get(f"{server.url}/healthz").json().get("reason") == "Redis cannot be reached",
                what="health to say so",
            )
        wait_until(lambda: is_well(server), what="recovery")
        redis.stop()
        assert code_of(ask(server)) == (503, "store_unavailable")
        redis.start()
        wait_until(lambda: is_well(server), what="recovery")
