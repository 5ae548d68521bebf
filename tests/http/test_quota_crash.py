"""Sixty-four clients of one account, and the web process killed in the middle: the quota holds to the token."""

from __future__ import annotations

import threading
from contextlib import suppress

import httpx
import pytest

from chatsvc.guard.assembly import assemble
from chatsvc.guard.limits.quotas import Bucket
from chatsvc.wiring import guard_options

NUM_CLIENTS = 64
QUOTA = 6000
ASK = {"query": "Say hello.", "max_tokens": 12, "temperature": 1.0}
MANY = {"CHATSVC_LIMITS__REQUESTS_PER_MINUTE": "1000000", "CHATSVC_LIMITS__MAX_WAITING": "96"}


class Clients:
    """They ask until their quota is used up, or the service has gone; ``used`` is every token that they were given."""

    def __init__(self, server):
        self.used: list[int] = []
        self.refused: list[int] = []
        self._server = server
        self._threads = [threading.Thread(target=self._ask) for _ in range(NUM_CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _ask(self):
        client = httpx.Client(base_url=self._server.url, headers=self._server.headers, timeout=60)
        with client, suppress(httpx.TransportError):
            while True:
                answer = client.post("/chat", json=ASK)
                if answer.status_code == 429:
                    assert answer.json()["error"]["code"] == "token_quota_exceeded"
                    self.refused.append(429)
                    return
                assert answer.status_code == 200, answer.text
                self.used.append(answer.json()["usage"]["total_tokens"])

    def wait(self):
        for thread in self._threads:
            thread.join()


@pytest.fixture
def left():
    """``left(server)``: what alice's account has left by the database."""

    def read(server):
        guard = assemble(guard_options(server.settings))
        try:
            account = guard.accounts.get("alice")
            state = guard.quotas.state([Bucket(f"account:{account.id}", QUOTA)])
            return state.remaining
        finally:
            guard.close()

    return read


def test_a_quota_holds_to_the_token_also_when_the_web_process_is_killed(serve, tmp_path, left, wait_until):
    with serve(tmp_path, **MANY) as server:
        guard = assemble(guard_options(server.settings))
        guard.accounts.set_limits("alice", {"tokens_per_day": QUOTA})
        guard.close()
        clients = Clients(server)
        wait_until(lambda: sum(clients.used) > QUOTA / 3)
        server.process.kill()
        clients.wait()
    given = sum(clients.used)
    assert 0 < given < QUOTA
    assert left(server) <= QUOTA - given  # what was on its way counts in full: nobody knows what became of it
    with serve(tmp_path, **MANY) as server:
        clients = Clients(server)
        clients.wait()
        assert len(clients.refused) == NUM_CLIENTS
    assert given + sum(clients.used) <= QUOTA
    assert sum(clients.used) > 0
    assert left(server) < 64  # and it was used up but for what one more request would have needed
