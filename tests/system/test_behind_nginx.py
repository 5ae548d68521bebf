"""The service as it is meant to stand: nginx, gunicorn on a unix socket, the engine in a process of its own."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

LONG = {
    "query": "Write a long story about a brave knight, a dragon and a library.",
    "max_tokens": 300,
    "temperature": 0,
}
FORGED = [
    {"X-Forwarded-For": "127.0.0.1"},
    {"X-Forwarded-For": '"'},
    {"X-Forwarded-For": ""},
    {"X-Forwarded-For": "127.0.0.1, 127.0.0.1"},
    {"X-Real-IP": "127.0.0.1"},
    {"Forwarded": "for=127.0.0.1"},
    {"X-Forwarded-Host": "127.0.0.1", "X-Forwarded-Prefix": "/api"},
    {"X-Client-IP": "127.0.0.1", "True-Client-IP": "127.0.0.1", "CF-Connecting-IP": "127.0.0.1"},
]


def shape_of(error: dict) -> set[str]:
    return set(error["error"])


FOUR_KEYS = {"message", "type", "param", "code"}


def test_the_capital_of_france_is_paris_through_every_room(service) -> None:
    with service.client() as client:
        body = {"query": "What is the capital of France?", "temperature": 0}
        answer = client.post("/api/chat", json=body, headers=service.headers())
        assert answer.status_code == 200, answer.text
        assert "Paris" in answer.json()["result"]
        assert answer.json()["usage"]["total_tokens"] > 10


def test_the_templates_own_words_are_computed_once_for_all_and_a_callers_for_nobody_else(service) -> None:
    def num_cached(name: str, text: str) -> int:
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 1}
        answer = client.post("/v1/chat/completions", json=body, headers=service.headers(name))
        assert answer.status_code == 200, answer.text
        return answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    long = "Tell me about the history of the city of Paris. " * 20
    with service.client() as client:
        num_cached("alice", long)
        found = num_cached("root", "Hi")
        assert found > 0
        assert num_cached("alice", long) > 100 + found
        assert num_cached("root", long) == found


@pytest.mark.parametrize("path", ["/chat/stream", "/api/chat/stream"])
def test_the_first_piece_arrives_long_before_the_last_also_when_gzip_is_asked_for(service, events, path: str) -> None:
    headers = {**service.headers(), "Accept-Encoding": "gzip, br"}
    started, times = time.monotonic(), []
    with service.client() as client, client.stream("POST", path, json=LONG, headers=headers) as answer:
        assert answer.status_code == 200
        assert "content-encoding" not in answer.headers
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        for name, _ in events(answer):
            times.append(time.monotonic() - started)
            last = name
    assert last == "done"
    assert len(times) > 50
    assert times[-1] - times[0] > 0.5


def test_openai_streams_are_not_held_back_either(service) -> None:
    body = {
        "messages": [{"role": "user", "content": LONG["query"]}],
        "max_tokens": 200,
        "temperature": 0,
        "stream": True,
    }
    times = []
    with (
        service.client() as client,
        client.stream("POST", "/v1/chat/completions", json=body, headers=service.headers()) as answer,
    ):
        lines = [line for line in answer.iter_lines() if line and not times.append(time.monotonic())]
    assert lines[-1] == "data: [DONE]"
    assert times[-1] - times[0] > 0.3


@pytest.mark.parametrize("headers", [{}, *FORGED])
def test_nginx_refuses_an_address_off_the_list(service, headers: dict[str, str]) -> None:
    with service.client("127.0.0.7") as client:
        answer = client.get("/healthz", headers=headers)
        assert answer.status_code == 403
        assert answer.json()["error"]["type"] == "permission_error"
        assert shape_of(answer.json()) == FOUR_KEYS


@pytest.mark.parametrize("headers", [{}, *FORGED])
def test_the_application_refuses_an_address_off_the_list_that_nginx_let_through(service, headers) -> None:
    with service.client("127.0.0.7", lax=True) as client:
        for path in ("/healthz", "/", "/nowhere"):
            answer = client.get(path, headers=headers)
            assert answer.status_code == 403, path
            assert answer.json()["error"]["type"] == "permission_error"


@pytest.mark.parametrize("headers", FORGED)
def test_a_listed_address_is_itself_whatever_it_says(service, headers: dict[str, str]) -> None:
    with service.client("127.0.0.9") as client:
        assert client.get("/healthz", headers=headers).status_code == 200
    assert '"address": "127.0.0.9"' in service.serve.text


def test_a_forged_address_is_not_what_the_log_says(service, until) -> None:
    request_id = f"forged-address-{secrets.token_hex(4)}"
    with service.client("127.0.0.7", lax=True) as client:
        client.get("/healthz", headers={"X-Forwarded-For": "127.0.0.1", "X-Request-Id": request_id})
    until(lambda: f'{request_id}"' in service.serve.text, what="the line of the log")
    (line,) = [line for line in service.serve.text.splitlines() if request_id in line]
    assert json.loads(line)["address"] == "127.0.0.7"


def test_nothing_of_the_service_listens_on_the_network(service) -> None:
    inodes = set()
    for pid in [service.serve.process.pid, *service.pids()["engine"], *service.pids()["web"]]:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            target = str(link.readlink())
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    network = [line.split()[9] for table in ("tcp", "tcp6", "udp", "udp6") for line in _rows(table)]
    assert inodes, "the processes have sockets"
    assert not inodes & set(network)


def _rows(table: str) -> list[str]:
    path = Path("/proc/net") / table
    return path.read_text().splitlines()[1:] if path.exists() else []


def test_the_sockets_are_private(service) -> None:
    web = Path(service.home.settings["CHATSVC_SERVER__SOCKET"])
    engine = service.home.path / "run" / "engine.sock"
    assert stat.S_IMODE(web.stat().st_mode) == 0o660
    assert stat.S_IMODE(engine.stat().st_mode) == 0o600
    assert stat.S_IMODE(engine.parent.stat().st_mode) == 0o700


def test_the_web_process_stays_on_one_core_and_the_engine_has_all(service) -> None:
    def cores_of_threads(pids: list[int]) -> set[int]:
        """Of the process with the most threads: the other one beside the web process is gunicorn's master."""
        threads = max(([int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()] for pid in pids), key=len)
        return {len(os.sched_getaffinity(thread)) for thread in threads}

    pids = service.pids()
    assert cores_of_threads(pids["web"]) == {1}
    assert cores_of_threads(pids["engine"]) == {len(os.sched_getaffinity(0))}


def test_straight_to_the_web_process_without_an_address_is_refused(service) -> None:
    transport = httpx.HTTPTransport(uds=service.home.settings["CHATSVC_SERVER__SOCKET"])
    with httpx.Client(transport=transport, base_url="http://chat.test") as client:
        assert client.get("/healthz").status_code == 403
        assert client.get("/healthz", headers={"X-Forwarded-For": '"'}).status_code == 403


def _handshake(service, name: str | None, **options: object) -> str | None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for key, value in options.items():
        setattr(context, key, value)
    with (
        socket.create_connection(("127.0.0.1", service.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=name) as wrapped,
    ):
        return wrapped.version()


def test_only_the_known_name_and_tls_1_3_get_a_handshake(service) -> None:
    assert _handshake(service, "chat.test") == "TLSv1.3"
    for name in ("other.test", None):
        with pytest.raises(ssl.SSLError):
            _handshake(service, name)
    with pytest.raises(ssl.SSLError):
        _handshake(service, "chat.test", maximum_version=ssl.TLSVersion.TLSv1_2)


def test_a_body_that_is_too_large_is_413_in_the_contracts_shape(service) -> None:
    sent = {"headers": {**service.headers(), "Content-Type": "text/plain"}}
    with service.client() as client:
        for route, size in (("/login", 70_000), ("/chat", 2_000_000), ("/v1/chat/completions/", 2_000_000)):
            answer = client.post(route, content=b"x" * size, **sent)
            assert answer.status_code == 413, route
            assert shape_of(answer.json()) == FOUR_KEYS
        assert client.post("/chat/", content=b"x" * 400_000, **sent).status_code == 415  # it came through


MALFORMED = [
    b"GET /healthz HTTP/1.1\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: chat.test\r\nHost: chat.test\r\n\r\n",
    b"GARBAGE\r\n\r\n",
    b"POST /chat HTTP/1.1\r\nHost: chat.test\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /chat HTTP/1.1\r\nHost: chat.test\r\nContent-Length: -1\r\n\r\n",
    b"POST /chat HTTP/1.1\r\nHost: chat.test\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    b"POST /chat HTTP/1.1\r\nHost: chat.test\r\nTransfer-Encoding: xchunked\r\n\r\n",
    b"POST /chat HTTP/1.1\r\nHost: chat.test\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n\r\n",
    b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: chat.test\r\n\r\n",
    b"GET /healthz HTTP/9.9\r\nHost: chat.test\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: chat.test\r\nX: " + b"a" * 80_000 + b"\r\n\r\n",
    b"GET /\x00 HTTP/1.1\r\nHost: chat.test\r\n\r\n",
    b"TRACE / HTTP/1.1\r\nHost: chat.test\r\n\r\n",
]


@pytest.mark.parametrize("request_bytes", MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_requests_are_refused_and_the_service_goes_on(service, request_bytes: bytes) -> None:
    with (
        socket.create_connection(("127.0.0.1", service.port), timeout=15) as plain,
        service.trust.wrap_socket(plain, server_hostname="chat.test") as wrapped,
    ):
        wrapped.sendall(request_bytes)
        try:
            head = wrapped.recv(4096)
        except OSError:
            head = b""
    assert head == b"" or head.split()[1][:1] == b"4" or head.split()[1] in {b"501", b"505"}, head
    assert service.health() == 200


BAD_BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'\xef\xbb\xbf{"query":"x"}',
    b'{"query":"x","query":"y"}',
    b'{"query":NaN}',
    b'{"query":"x","max_tokens":NaN}',
    b'{"query":"x","unknown":1}',
    b'{"query":""}',
    b'{"query":5}',
    b'{"query":"\\u0000"}',
    b'{"query":"\\ud800"}',
    b'{"messages":[]}',
    b'{"query":"x","messages":[{"role":"user","content":"x"}]}',
    b'{"query":"x","temperature":3}',
    b'{"query":"x","top_p":0}',
    b'{"query":"x","max_tokens":0}',
    b'{"query":"x","stop":[]}',
    b"[" * 10_000,
    '{"query":"x"}'.encode("utf-16"),
]


@pytest.mark.parametrize("body", BAD_BODIES, ids=range(len(BAD_BODIES)))
def test_a_malformed_body_is_400_in_the_contracts_shape(service, token, body: bytes) -> None:
    with service.client() as client:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        answer = client.post("/chat", content=body, headers=headers)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert shape_of(answer.json()) == FOUR_KEYS


@pytest.fixture(scope="module")
def token(service) -> str:
    return service.token()


def test_a_killed_engine_ends_streams_with_an_error_shows_in_health_and_comes_back(service, events, until) -> None:
    headers = service.headers()
    with service.client() as client, client.stream("POST", "/chat/stream", json=LONG, headers=headers) as answer:
        stream = events(answer)
        next(stream)
        (engine,) = service.pids()["engine"]
        killed_at = time.monotonic()
        os.kill(engine, signal.SIGKILL)
        name, data = list(stream)[-1]
        assert name == "error"
        assert shape_of(data) == FOUR_KEYS
        until(lambda: service.health() == 503, 2, "503 of /healthz")
        assert time.monotonic() - killed_at < 3
    until(lambda: service.health() == 200, 60, "the engine's return")
    with service.client() as client:
        assert client.get("/me", headers=headers).status_code == 200, "the login survives"
        assert client.post("/chat", json={"query": "Hi", "max_tokens": 3}, headers=headers).status_code == 200


def test_a_killed_web_process_comes_back_and_meanwhile_there_is_503_at_worst(service, until) -> None:
    headers = service.headers()
    before = service.pids()["web"]
    os.kill(min(before), signal.SIGKILL)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in before), 20, "the end of the worker with its master")
    with service.client() as client:
        answers = []

        def back() -> bool:
            answers.append(client.get("/healthz"))
            return answers[-1].status_code == 200

        until(back, 60, "the web process's return")
        refused = [answer for answer in answers if answer.status_code != 200]
        assert {answer.status_code for answer in refused} <= {503}
        assert all(shape_of(answer.json()) == FOUR_KEYS for answer in refused if "error" in answer.json())
        assert client.get("/me", headers=headers).status_code == 200


def test_logins_are_limited_by_address_in_the_contracts_shape(service) -> None:
    statuses: list[int] = []

    def try_often() -> None:
        with service.client("127.0.0.9") as client:
            for _ in range(25):
                answer = client.post("/login", json={"username": "nobody", "password": "a wrong password"})
                statuses.append(answer.status_code)
                assert shape_of(answer.json()) == FOUR_KEYS
                if answer.status_code == 429:
                    assert 1 <= int(answer.headers["Retry-After"]) <= 120

    threads = [threading.Thread(target=try_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) <= {401, 429}
    assert 429 in statuses


def test_the_audit_log_of_all_this_verifies_from_a_copy(service, tmp_path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("audit", "keys"):
        subprocess.run(["cp", "-a", str(service.home.path / name), str(copy / name)], check=True)
    environment = {**service.home.environment, "CHATSVC_HOME": str(copy)}
    verified = subprocess.run(
        [sys.executable, "-m", "chatsvc.cli.main", "audit", "verify"],
        env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert verified.returncode == 0, verified.stdout + verified.stderr
