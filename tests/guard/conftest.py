from __future__ import annotations

import time
from ipaddress import ip_address, ip_network

import pytest

from chatsvc.errors import AuditUnavailable
from chatsvc.guard.accounts.passwords import PasswordOptions
from chatsvc.guard.assembly import GuardOptions, assemble
from chatsvc.guard.gate import GateOptions
from chatsvc.guard.limits.queue import Queue
from chatsvc.guard.principal import Limits
from tests.tokens import signed_pair

PASSWORD = "correct horse battery"
HOME = ip_address("127.0.0.1")


class Clock:
    """A clock that moves only by :meth:`advance`. It starts at the real time, because PyJWT reads the system clock."""

    def __init__(self, now):
        self.now = now

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock(time.time())


@pytest.fixture
def options(tmp_path):
    return GuardOptions(
        store_url=f"sqlite:///{tmp_path / 'chatsvc.db'}",
        keys_directory=tmp_path / "keys",
        gate=GateOptions(
            limits=Limits(requests_per_minute=100, tokens_per_day=1000, max_concurrent=3),
            allowed_networks=[ip_network("127.0.0.0/8"), ip_network("::ffff:10.0.0.0/104")],
            trusted_proxies=[ip_network("192.0.2.0/24")],
            role_limits={"operator": {"tokens_per_day": 5000}},
        ),
        passwords=PasswordOptions(memory_kib=8192, time_cost=1),
    )


@pytest.fixture
def guard(options, clock):
    guard = assemble(options, clock=clock)
    yield guard
    guard.close()


@pytest.fixture
def gate(guard, options):
    def record(action, actor, details):
        raise AuditUnavailable

    return guard.gate(options, Queue(2, 4, 3), record)


@pytest.fixture
def ada(guard):
    """An account with the role ``user``."""
    return guard.accounts.add("ada", PASSWORD, ["user"]).after


@pytest.fixture
def pair(guard, ada):
    """The tokens of one login."""
    return signed_pair(guard.sessions.start(ada["id"], str(HOME))[1])
