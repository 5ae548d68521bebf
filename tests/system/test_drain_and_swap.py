"""Ends and changes that nobody feels: a stop lets streams finish, another model takes over without a refusal."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from bench.load import asking

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

LONG = {
    "query": "Write a long story about a brave knight, a dragon and a library.",
    "max_tokens": 150,
    "temperature": 0,
}


@pytest.fixture(scope="module")
def own_service(boot_service):
    """A service that these tests may change and end."""
    return boot_service(SERVER__DRAIN_TIMEOUT_S="60")


class Streams:
    """What clients do that stream again and again; what all of them got."""

    def __init__(self, service, events) -> None:
        self.ends: list[str] = []
        self.problems: list[object] = []
        self._service, self._events = service, events
        self._headers = service.headers()

    def ask(self) -> None:
        body = {**LONG, "max_tokens": 60}
        try:
            with (
                self._service.client() as client,
                client.stream("POST", "/chat/stream", json=body, headers=self._headers) as answer,
            ):
                if answer.status_code != 200:
                    self.problems.append((answer.status_code, answer.read()))
                    return
                name, data = list(self._events(answer))[-1]
                self.ends.append(name)
                if name != "done":
                    self.problems.append((name, data))
        except Exception as error:  # noqa: BLE001  (whatever it is, it is the finding)
            self.problems.append(error)


def test_another_model_takes_over_without_a_cut_stream_or_a_refused_request(own_service, events, until) -> None:
    home = own_service.home
    weights = (home.path / "models" / "current").resolve() / "model.gguf"
    home.run("model", "import", str(weights), "--name", "second")
    (old_engine,) = own_service.pids()["engine"]
    streams = Streams(own_service, events)
    with asking(streams.ask, 3):
        until(lambda: len(streams.ends) >= 3)
        home.run("model", "activate", "second")
        until(lambda: not Path(f"/proc/{old_engine}").exists(), 90, "the old engine's end")
        count = len(streams.ends)
        until(lambda: len(streams.ends) >= count + 3)
    assert streams.problems == []
    with own_service.client() as client:
        answer = client.post("/chat", json={"query": "Hi", "max_tokens": 2}, headers=own_service.headers())
        assert answer.json()["model"] == "second"


def test_a_stop_refuses_new_work_and_lets_running_streams_finish(own_service, events, until) -> None:
    headers, got = own_service.headers(), []
    started = threading.Event()

    def ask() -> None:
        with (
            own_service.client() as client,
            client.stream("POST", "/chat/stream", json=LONG, headers=headers) as answer,
        ):
            for event in events(answer):
                got.append(event)
                started.set()

    asking = threading.Thread(target=ask)
    asking.start()
    assert started.wait(30)
    began = time.monotonic()
    own_service.serve.process.terminate()
    refusals = []
    with own_service.client() as client:

        def refused() -> bool:
            answer = client.post("/chat", json={"query": "Hi", "max_tokens": 2}, headers=headers)
            refusals.append(answer)
            return answer.status_code == 503

        until(refused, 10, "the refusal of new work")
        assert 1 <= int(refusals[-1].headers["Retry-After"]) <= 120
        assert refusals[-1].json()["error"]["type"] in {"service_unavailable", "overloaded_error"}
    asking.join()
    assert got[-1][0] == "done", got[-1]
    assert own_service.serve.process.wait(70) == 0
    assert time.monotonic() - began < 65


def test_the_log_of_a_service_that_ended_verifies(own_service) -> None:
    assert own_service.home.run("audit", "verify").returncode == 0
