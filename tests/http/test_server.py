"""Through a real gunicorn and real sockets: streaming, eight at once, OpenAI's own client, clients that leave."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Germany": "Berlin",
    "Japan": "Tokyo",
    "Spain": "Madrid",
    "Russia": "Moscow",
    "China": "Beijing",
    "England": "London",
}
# More than 1500 tokens; without temperature, so that it is as long on every processor.
LONG = {"query": "Write a very long story about a ship.", "max_tokens": 2000, "temperature": 0}


def gauge(server, name):
    with open_client(server) as client:
        text = client.get("/metrics", headers={"Authorization": f"Bearer {admin_token(server)}"}).text
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


_tokens: dict[str, str] = {}


def admin_token(server):
    if server.url not in _tokens:
        with open_client(server) as client:
            answer = client.post("/login", json={"username": "admin", "password": "an admin's long password"})
        _tokens[server.url] = answer.json()["access_token"]
    return _tokens[server.url]


def open_client(server):
    return httpx.Client(base_url=server.url, headers=server.headers, timeout=60)


def test_pieces_arrive_while_the_rest_is_still_being_made(server, events):
    with (
        open_client(server) as client,
        client.stream("POST", "/chat/stream", json={**LONG, "max_tokens": 60}) as answer,
    ):
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-store, no-transform"
        assert answer.headers["x-accel-buffering"] == "no"
        arrivals = [(time.monotonic(), chunk) for chunk in answer.iter_raw()]
    assert len(arrivals) > 10
    assert arrivals[-1][0] - arrivals[0][0] > 0.05
    (begun, start), *tokens, (name, done) = events(b"".join(chunk for _, chunk in arrivals))
    assert (begun, name) == ("start", "done")
    assert (start["id"], start["conversation_id"]) == (done["id"], done["conversation_id"])
    assert done["usage"]["completion_tokens"] == 60 == done["usage"]["total_tokens"] - done["usage"]["prompt_tokens"]
    assert done["finish_reason"] == "length"
    assert set(done) == {"id", "finish_reason", "usage", "conversation_id"}
    assert all(set(data) == {"token"} and name is None for name, data in tokens)


@pytest.mark.parametrize("is_new", [True, False])
def test_a_conversation_deleted_while_it_is_answered_is_gone_for_good(server, events, is_new):
    with open_client(server) as client:
        body = {**LONG, "max_tokens": 1500}
        if not is_new:
            body["conversation_id"] = client.post("/chat", json={"query": "Hi", "max_tokens": 1}).json()[
                "conversation_id"
            ]
        with client.stream("POST", "/chat/stream", json=body) as answer:
            pieces = answer.iter_raw()
            seen = b""
            while b'data: {"token"' not in seen:
                seen += next(pieces)
            path = f"/conversations/{events(seen)[0][1]['conversation_id']}"
            assert client.delete(path).status_code == 204
            seen += b"".join(pieces)
        name, data = events(seen)[-1]
        assert (name, data["error"]["code"]) == ("error", "conversation_deleted")
        assert client.get(path).status_code == 404
        assert path.rpartition("/")[2] not in client.get("/conversations").text


def test_joined_pieces_are_byte_for_byte_the_result(server, events):
    for query in ("Count to ten in Chinese characters.", "Answer with three emoji.", "Write a haiku."):
        body = {"query": query, "max_tokens": 32, "temperature": 0}
        with open_client(server) as client:
            whole = client.post("/chat", json=body).json()
            stream = events(client.post("/chat/stream", json=body).content)
        assert "".join(data["token"] for name, data in stream if name is None) == whole["result"]
        assert stream[-1][1]["usage"] == whole["usage"]
        assert stream[-1][1]["finish_reason"] == whole["finish_reason"]


def test_eight_streams_at_once_all_get_their_own_answer(server, events):
    def ask(country):
        body = {"query": f"What is the capital of {country}? Answer with one sentence."}
        body |= {"max_tokens": 24, "temperature": 0}
        with open_client(server) as client:
            stream = events(client.post("/chat/stream", json=body).content)
        return country, "".join(data["token"] for name, data in stream if name is None)

    with ThreadPoolExecutor(8) as pool:
        answers = dict(pool.map(ask, CAPITALS))
    for country, answer in answers.items():
        assert CAPITALS[country] in answer, answers
        assert not any(other in answer for name, other in CAPITALS.items() if name != country), answers


def test_the_official_openai_client_lists_chats_and_streams_with_usage(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0) as client:
        (model,) = client.models.list().data
        assert client.models.retrieve(model.id).id == model.id
        messages = [
            {"role": "developer", "content": "Answer in one short sentence."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "What is the capital "}, {"type": "text", "text": "of France?"}],
            },
        ]
        whole = client.chat.completions.create(
            model=model.id, messages=messages, max_completion_tokens=20, temperature=0, user="u"
        )
        assert "Paris" in whole.choices[0].message.content
        assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
        chunks = list(
            client.chat.completions.create(
                model=model.id,
                messages=messages,
                max_tokens=20,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        assert chunks[0].choices[0].delta.role == "assistant"
        assert (
            "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
        )
        assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
        assert chunks[-1].choices == []
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
        assert len({chunk.id for chunk in chunks}) == 1
        with pytest.raises(openai.NotFoundError) as unknown:
            client.chat.completions.create(model="gpt-4o", messages=messages)
        assert unknown.value.code == "model_not_found"
        several = client.chat.completions.create(
            model=model.id, messages=messages, n=2, logprobs=True, top_logprobs=2, seed=1, max_completion_tokens=5
        )
        assert [choice.index for choice in several.choices] == [0, 1]
        scored = [choice.logprobs.content for choice in several.choices]
        assert sum(map(len, scored)) == several.usage.completion_tokens
        assert all(len(token.top_logprobs) == 2 and bytes(token.bytes) for tokens in scored for token in tokens)
        with pytest.raises(openai.BadRequestError) as unsupported:
            client.chat.completions.create(model=model.id, messages=messages, n=17)
        assert unsupported.value.param == "n"
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="csk_no_such").models.list()


@pytest.mark.parametrize("path", ["/chat/stream", "/chat"])
def test_a_client_that_leaves_frees_its_slot_within_a_second(server, path, wait_until):
    wait_until(lambda: gauge(server, "chatsvc_sequences_running") == 0)
    body = json.dumps(LONG).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + body)
        wait_until(lambda: gauge(server, "chatsvc_sequences_running") == 1)
    left_at = time.monotonic()
    wait_until(lambda: gauge(server, "chatsvc_sequences_running") == 0)
    assert time.monotonic() - left_at < 10  # a second is the rule; the machine may be busy
    wait_until(lambda: f'"path": "{path}"' in server.log.read_text())


def test_keep_alive_comments_are_sent_while_waiting_for_the_first_token(server):
    # A long prompt: prefill takes longer than the keep-alive interval of this server (0.2 s).
    body = {"query": "word " * 2500, "max_tokens": 2}
    with open_client(server) as client:
        text = client.post("/chat/stream", json=body).text
    start, rest = text.split("\n\n", 1)
    assert start.startswith("event: start\n")
    assert rest.startswith(": keep-alive\n\n")
    assert text.rstrip().splitlines()[-1].startswith("data: ")


def test_health_answers_in_milliseconds_while_every_slot_is_busy(server):
    def busy():
        with (
            open_client(server) as client,
            client.stream("POST", "/chat/stream", json={**LONG, "max_tokens": 60}) as answer,
        ):
            for _ in answer.iter_raw():
                pass

    threads = [threading.Thread(target=busy) for _ in range(12)]
    for thread in threads:
        thread.start()
    times = []
    with open_client(server) as client:
        for _ in range(40):
            started = time.perf_counter()
            assert client.get("/healthz").json() == {"status": "ok"}
            times.append(time.perf_counter() - started)
            time.sleep(0.02)
    for thread in threads:
        thread.join()
    assert sorted(times)[len(times) // 4] < 0.5  # a busy machine delays some, a blocked service all


def test_a_logout_in_mid_stream_ends_it_with_an_error_event(server, events):
    with httpx.Client(base_url=server.url, timeout=60) as client:
        token = client.post("/login", json={"username": "bob", "password": "bob's long password"}).json()[
            "access_token"
        ]
        headers = {"Authorization": f"Bearer {token}"}
        received = b""
        with client.stream("POST", "/chat/stream", json=LONG, headers=headers) as answer:
            for chunk in answer.iter_raw():
                if not received:
                    assert httpx.post(f"{server.url}/logout", headers=headers).status_code == 204
                received += chunk
        name, data = events(received)[-1]
        assert name == "error"
        assert data["error"]["type"] == "authentication_error"
        assert client.get("/me", headers=headers).status_code == 401


def test_a_body_that_breaks_off_in_chunks_is_a_4xx_or_a_close(server):
    head = f"POST /chat HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    for rest in (b"zz\r\n", b"5\r\nab", b"5\r\nabcdefgh\r\n", b"-1\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(head.encode() + rest)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(4096)
        assert not answer or answer.split()[1][:1] == b"4", answer


def test_a_chunked_body_over_the_limit_is_413(server):
    def chunks():
        for _ in range(100):
            yield b"x" * 50_000

    with open_client(server) as client:
        answer = client.post("/chat", content=chunks(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"


def test_two_hosts_or_none_are_400(server):
    for hosts in ("", "Host: a\r\nHost: b\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(f"GET /livez HTTP/1.1\r\n{hosts}\r\n".encode())
            assert connection.recv(4096).startswith(b"HTTP/1.1 400")


def test_the_log_holds_no_prompt_and_no_token(server):
    with open_client(server) as client:
        client.post("/chat", json={"query": "canary-in-a-prompt", "max_tokens": 1})
    text = server.log.read_text()
    assert "canary-in-a-prompt" not in text
    assert server.key not in text
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert any(line["message"] == "request" and line["path"] == "/chat" for line in lines)


@pytest.mark.parametrize(
    ("chains", "status"),
    [
        (["127.0.0.5"], 200),
        (["192.0.2.1, 127.0.0.5"], 200),
        (["127.0.0.5", "127.0.0.5"], 403),
        (["192.0.2.1", "127.0.0.5"], 403),
        (["127.0.0.5", ""], 403),
        ([], 403),
    ],
)
def test_a_trusted_proxy_brings_exactly_one_forwarded_header(server, chains, status):
    headers = "".join(f"X-Forwarded-For: {chain}\r\n" for chain in chains)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30, source_address=("127.0.0.8", 0)) as line:
        line.sendall(f"GET /livez HTTP/1.1\r\nHost: here\r\n{headers}Connection: close\r\n\r\n".encode())
        assert line.recv(64).split()[1] == str(status).encode()


def test_me_tells_where_ones_requests_stand(server, wait_until):
    def busy():
        with open_client(server) as client, client.stream("POST", "/chat/stream", json=LONG) as answer:
            pieces = answer.iter_raw()  # an iterator that nobody holds closes the connection
            next(pieces)
            told.append(client_requests())

    def client_requests():
        with open_client(server) as client:
            return client.get("/me").json()["requests"]

    told = []
    busy()
    assert {"position": 0} | {"estimate_s": told[0][0]["estimate_s"]} == told[0][0]
    wait_until(lambda: client_requests() == [])


def test_on_sigterm_a_running_stream_ends_with_an_error_event_and_the_process_ends(serve, tmp_path, events):
    with serve(tmp_path) as server, open_client(server) as client:
        received = b""
        with client.stream("POST", "/chat/stream", json={**LONG, "max_tokens": 4000}) as answer:
            for chunk in answer.iter_raw():
                if not received:
                    server.process.terminate()
                received += chunk
        name, data = events(received)[-1]
        assert (name, data["error"]["code"]) == ("error", "draining")
        server.process.wait(20)
        assert '"end"' in "".join(path.read_text() for path in (tmp_path / "audit").rglob("*.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("body", ["", "Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{"])
def test_a_request_that_is_never_finished_is_closed(server, body):
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as line:
        line.sendall(f"POST /login HTTP/1.1\r\nHost: here\r\n{body}".encode())
        while line.recv(4096):  # an answer at most, then the end
            pass


def test_a_malformed_chunk_gets_one_4xx_or_a_close_on_every_route(server):
    with open_client(server) as client:
        document = client.get("/openapi.json").json()
    calls = [
        (method, path) for path, methods in document["paths"].items() for method in methods if method != "parameters"
    ]
    assert len(calls) > 30
    for method, path in calls:
        path = re.sub("[{}]", "", path)  # noqa: PLW2901
        bearer = server.key if path.startswith(("/chat", "/v1")) else admin_token(server)
        head = (
            f"{method.upper()} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {bearer}\r\n"
            "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        if path in {"/logout", "/admin/signing-keys/rotate"}:  # they take no body, and do what they are told
            continue
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(head.encode() + b"zz\r\nabc")
            connection.shutdown(socket.SHUT_WR)
            received = b"".join(iter(lambda: connection.recv(65536), b""))
        assert not received or received.split()[1][:1] in b"234", (method, path, received[:200])
        assert received.count(b"HTTP/1.1 ") <= 1, (method, path, received[-200:])
    assert '"code": "server_error"' not in server.log.read_text()
