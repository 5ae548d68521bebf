"""Hostile clients straight at gunicorn, on the loopback address: whatever they do, health answers at once."""

from __future__ import annotations

import inspect
import json
import resource
import socket
import sqlite3
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import httpx
import pytest
from gunicorn.workers.gthread import TConn, ThreadWorker

from chatsvc.http.server.worker import Worker

MANY = 60
AT_ONCE_S = 8.0  # it takes milliseconds on an idle machine; with gunicorn's own worker tens of seconds


@pytest.fixture(scope="module")
def target(serve, tmp_path_factory):
    with serve(tmp_path_factory.mktemp("target")) as server:
        yield server


def connect(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


@contextmanager
def hostile(server, num, first, then=b""):
    """So many connections that have sent ``first``, and a function that sends ``then`` on each of them."""
    with ExitStack() as stack:
        lines = [stack.enter_context(connect(server)) for _ in range(num)]
        for line in lines:
            line.sendall(first)

        def more():
            for line in lines:
                try:
                    line.sendall(then)
                except OSError:  # it was closed meanwhile, as it should
                    continue

        yield more


def slowest_s(server, more=lambda: None, rounds=3):
    """How long the slowest of some new connections waited for ``/livez``."""
    found = []
    for _ in range(rounds):
        started = time.monotonic()
        assert httpx.get(f"{server.url}/livez", timeout=30).status_code == 200
        found.append(time.monotonic() - started)
        more()
        time.sleep(0.1)
    return max(found)


HEAD = b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
ATTACKS = {
    "connections that are never closed": (b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b""),
    "refused ones that are never closed": (b"GET /livez HTTP/1.1\r\nHost: x\r\nbroken line\r\n\r\n", b""),
    "nothing": (b"", b""),
    "slow heads": (b"GET /livez HTTP/1.1\r\nX: ", b"a"),
    "idle kept-alive ones": (b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", b""),
    "a second head that is slow": (b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HT", b"T"),
    "slow bodies": (HEAD + b"Content-Length: 60000\r\n\r\n{", b" "),
    "slow chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{", b" "),
    "slow bodies that nobody reads": (b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n", b" "),
    "answers that nobody reads": (b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 20, b""),
    "bodies that are waited for": (HEAD + b"Expect: 100-continue\r\nContent-Length: 60000\r\n\r\n", b""),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_health_answers_at_once_beside(target, name):
    first, then = ATTACKS[name]
    with hostile(target, MANY, first, then) as more:
        assert slowest_s(target, more) < AT_ONCE_S
    assert target.process.poll() is None


def test_more_slow_bodies_than_threads_hold_few_of_them(target):
    first, then = ATTACKS["slow bodies"]
    with hostile(target, target.settings.server_threads + 20, first, then) as more:
        assert slowest_s(target, more) < AT_ONCE_S


def test_a_quick_body_of_many_pieces_is_read(target):
    with connect(target) as line:
        line.sendall(HEAD + b"Connection: close\r\nContent-Length: 2000\r\n\r\n")
        for _ in range(20):
            line.sendall(b" " * 100)
            time.sleep(0.02)
        assert b"HTTP/1.1 400" in line.recv(4096)


def test_a_head_in_pieces_and_requests_sent_at_once_are_answered(target):
    with connect(target) as line:
        for byte in b"GET /livez HTTP/1.1\r\nHost: x\r\n\r":
            line.sendall(bytes([byte]))
            time.sleep(0.001)
        line.sendall(
            b"\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        received = b"".join(iter(lambda: line.recv(65536), b""))
    assert received.count(b"HTTP/1.1 200 OK") == 3


def test_one_address_with_very_many_connections_is_answered_in_place_of_its_oldest(target):
    num = target.settings.server_threads + 512  # more than all connections there are
    with hostile(target, num, b""):
        assert slowest_s(target) < AT_ONCE_S
        (worker,) = children_of(target.process.pid)
        num_open = len(list(Path(f"/proc/{worker}/fd").iterdir()))
        assert num_open < num * 3 / 4


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /canary HTTP/1.1\r\ncanary-header\r\n\r\n", 400),
        (b"canary-method! / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /canary\x00 canary HTTP/9.9\r\nHost: x\r\n\r\n", 400),
        (b"GET /" + b"canary" * 2000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"canary" * 4000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: a\r\n canary\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\ncanary : b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX_canary: b\r\n\r\n", 400),
        (b"POST /login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: canary\r\n\r\n", 501),
        (b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: canary\r\n\r\n", 400),
        (b"POST /login HTTP/1.1\r\nHost: x\r\nExpect: canary\r\n\r\n", 417),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\ncanary\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\ncanary\r\n\r\n", 400),
        (b"\x16\x03\x01canary\r\n\r\n", 400),
    ],
)
def test_what_is_not_http_is_refused_in_our_shape_and_never_logged(target, sent, status):
    with connect(target) as line:
        line.sendall(sent)
        line.shutdown(socket.SHUT_WR)
        received = b"".join(iter(lambda: line.recv(65536), b""))
    assert received.split()[1] == str(status).encode(), received
    assert received.count(b"HTTP/1.1 ") == 1
    assert b'"error"' in received
    assert b"canary" not in received
    assert "canary" not in target.log.read_text()


def test_a_chat_that_cannot_be_stored_leaves_its_reason_in_the_log_and_none_of_its_words(target):
    with closing(sqlite3.connect(target.settings.home / "chatsvc.db")) as operator:
        operator.execute("ALTER TABLE conversation_messages RENAME TO elsewhere")
        assert status_of(target, "/chat", {"query": "canary of a prompt", "max_tokens": 4}) == 503
        operator.execute("ALTER TABLE elsewhere RENAME TO conversation_messages")
    told = [json.loads(line) for line in target.log.read_text().splitlines() if '"the database failed"' in line]
    assert "OperationalError: SQLITE_ERROR" in told[-1]["traceback"]
    assert "conversations.py" in told[-1]["traceback"]
    assert "canary" not in target.log.read_text()


def test_descriptors_that_run_out_cost_neither_the_process_nor_health(serve, tmp_path):
    with serve(tmp_path) as server:
        (worker,) = children_of(server.process.pid)
        num_open = len(list(Path(f"/proc/{worker}/fd").iterdir()))
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (num_open + 40, num_open + 40))
        with hostile(server, 120, b""):
            time.sleep(0.5)
            assert slowest_s(server) < AT_ONCE_S
        assert slowest_s(server) < AT_ONCE_S
        assert children_of(server.process.pid) == [worker]
        assert "no file descriptor is left" in server.log.read_text()


def children_of(pid):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(each) for each in found.stdout.split()]


def test_what_is_overridden_is_there_in_gunicorn():
    ours = {name for name, value in vars(Worker).items() if inspect.isfunction(value) and not name.startswith("__")}
    theirs = {name for name in ours if hasattr(ThreadWorker, name)}
    assert theirs == {
        "_keepalive_after", "accept", "enqueue_req", "finish_request", "handle_error", "murder_pending",
        "set_accept_enabled",
    }  # fmt: skip
    for name in theirs:
        theirs_takes = list(inspect.signature(getattr(ThreadWorker, name)).parameters)
        assert theirs_takes == list(inspect.signature(getattr(Worker, name)).parameters), name
    assert {"nr_conns", "poller", "keepalived_conns"} <= set(
        inspect.getsource(ThreadWorker).replace("self.", " ").split()
    )
    assert hasattr(TConn, "init")


def test_while_every_thread_waits_for_the_database_health_answers_and_others_are_refused(serve, tmp_path):
    """More chats than threads, and another program holds the database: each of them waits for seconds."""
    given = {"CHATSVC_LIMITS__MAX_WAITING": "1", "CHATSVC_ENGINE__MAX_NUM_SEQS": "1"}
    with serve(tmp_path, **given) as server, ExitStack() as stack:
        num = server.settings.server_threads + 30
        other = stack.enter_context(closing(sqlite3.connect(tmp_path / "chatsvc.db", isolation_level=None)))
        other.execute("BEGIN IMMEDIATE")
        bearer = f"Authorization: Bearer {server.key}\r\n".encode()
        ask = b'{"query":"Hi","max_tokens":1}'
        head = b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n" + bearer
        lines = [stack.enter_context(connect(server)) for _ in range(num)]
        for line in lines:
            line.sendall(head + b"Content-Length: %d\r\n\r\n" % len(ask) + ask)
        assert slowest_s(server) < AT_ONCE_S
        other.execute("ROLLBACK")
        answers = [b"".join(iter(lambda line=line: line.recv(65536), b"")) for line in lines]
    assert {answer.split()[1] for answer in answers} <= {b"200", b"503"}
    refused = [answer for answer in answers if b"Every thread is busy" in answer]
    assert len(refused) >= 30
    assert all(b"Retry-After: 1\r\n" in answer for answer in refused)


def test_a_flood_of_logins_beside_a_full_queue_leaves_health_quick(serve, tmp_path):
    slow = {"CHATSVC_ACCOUNTS__ARGON2_TIME_COST": "6", "CHATSVC_LIMITS__MAX_WAITING": "4"}
    with serve(tmp_path, **slow) as server, ThreadPoolExecutor(140) as pool:
        story = {"query": "Write a very long story.", "max_tokens": 30, "seed": 1, "temperature": 1.0}
        chats = [pool.submit(status_of, server, "/chat", story) for _ in range(24)]
        logins = [pool.submit(status_of, server, "/login", {"username": f"n{i}", "password": "x"}) for i in range(100)]
        time.sleep(0.3)
        assert slowest_s(server, rounds=8) < AT_ONCE_S
        assert {each.result() for each in logins} <= {401, 503}
        assert {each.result() for each in chats} <= {200, 503}
        assert 401 in {each.result() for each in logins}


def status_of(server, path, body):
    return httpx.post(f"{server.url}{path}", json=body, headers=server.headers, timeout=120).status_code
