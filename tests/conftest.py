"""Fixtures for everybody: a real engine process with the embedded model, and real applications in front of it.

``CHATSVC_TEST_ENGINE_SOCKET`` may name the socket of an engine that runs already; then none is started.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask import Flask
from flask.testing import FlaskClient

from chatsvc.app import create_app, running_in
from chatsvc.errors import Conflict
from chatsvc.guard.assembly import assemble
from chatsvc.guard.credentials.api_keys import NewKey
from chatsvc.models.store import ModelStore
from chatsvc.models.supply import embedded
from chatsvc.resources import resource_path
from chatsvc.settings.load import Settings, load
from chatsvc.wiring import guard_options
from tests.documented import Held
from tests.servers import postgres, redis, slapd  # noqa: F401  (fixtures: real servers)

TESTS = Path(__file__).resolve().parent
PASSWORDS = {"admin": "an admin's long password", "alice": "alice's long password", "bob": "bob's long password"}
ROLES = {"admin": "admin", "alice": "user", "bob": "user"}
# Hashes as cheap as the settings allow: what they cost is not what most tests are about.
CHEAP = {
    "CHATSVC_ACCOUNTS__ARGON2_MEMORY_KIB": "8192",
    "CHATSVC_ACCOUNTS__ARGON2_TIME_COST": "1",
    "CHATSVC_GUARD__ALLOWED_NETWORKS": '["127.0.0.0/8"]',
}


# What takes a minute and more, longest first: whole files run on one worker, and none should be left with one of these alone.
LONGEST = (
    "kit/test_kit.py", "http/test_page_troubles.py", "http/test_schemathesis.py", "models/test_convert.py", "audit/test_crash.py",
    "system/test_behind_nginx.py", "system/test_drain_and_swap.py", "system/test_sealed_weights.py", "system/test_unplugged.py",
    "engine/test_native.py", "http/test_worker.py", "engine/test_torch.py", "http/test_outage.py", "audit/test_faults.py",
    "http/test_server.py", "http/test_browser.py",
)  # fmt: skip
# Whatever asks for one of these starts an engine or a browser, or loads or converts a whole model.
NOT_FAST = {"engine_socket", "driver", "smollm2", "converted"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--fast``."""
    parser.addoption("--fast", action="store_true", help="only tests that start no engine and no browser and are quick")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With ``--fast``, leave out what is slow. Begin with the longest files, the others keep their order."""
    if config.getoption("fast"):
        slow = [item for item in items if is_slow(item)]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in set(slow)]
    names = [str(TESTS / name) for name in LONGEST]
    items.sort(key=lambda item: names.index(str(item.path)) if str(item.path) in names else len(names))


class _SignalStack(ctypes.Structure):
    """``stack_t`` of sigaltstack(2)."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def pytest_runtest_setup() -> None:
    """Handle signals on the ordinary stack: on processors with AMX, OpenVINO leaves this thread a stack it has freed.

    Its CPU plugin sets an alternate signal stack for the thread that loads it, and unmaps it when it is unloaded. A
    signal that is delivered there afterwards, in whichever test, ends the process without a word.
    """
    disabled = _SignalStack(flags=2)  # SS_DISABLE
    ctypes.CDLL(None).sigaltstack(ctypes.byref(disabled), None)


def is_slow(item: pytest.Item) -> bool:
    """Whether ``make test-fast`` leaves it out."""
    marked = any(item.get_closest_marker(name) for name in ("engine", "slow", "system"))
    return marked or not NOT_FAST.isdisjoint(getattr(item, "fixturenames", ()))


def poll_until(condition: Callable[[], object], timeout_s: float = 60.0, what: str = "") -> None:
    """Poll until it holds; the limit is generous because the machine may be busy."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"timed out waiting for {what or condition}"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """``wait_until(condition)``."""
    return poll_until


@pytest.fixture(scope="session")
def events() -> Callable[[bytes], list[tuple[str | None, Any]]]:
    """``events(body)``: the (name, data) of every event of a stream; comments are left out."""

    def parse(body: bytes) -> list[tuple[str | None, Any]]:
        found = []
        for block in body.decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            if "data" in fields:
                data = fields["data"]
                found.append((fields.get("event"), data if data == "[DONE]" else json.loads(data)))
        return found

    return parse


@pytest.fixture(scope="session")
def engine_socket(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Path]:
    """A real engine process with the embedded model, for the whole session; ready when the fixture is."""
    assert not pytestconfig.getoption("fast"), "this test starts an engine: mark it with `engine`"
    named = os.environ.get("CHATSVC_TEST_ENGINE_SOCKET")
    if named:
        yield Path(named)
        return

    home = tmp_path_factory.mktemp("engine")
    environment = {**os.environ, **CHEAP, "CHATSVC_HOME": str(home), "CHATSVC_ENGINE__MAX_NUM_SEQS": "8"}
    settings = load(environment)
    embedded.ensure(ModelStore(settings.models_directory, settings.keys_directory), offline=False)
    log = home / "engine.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "chatsvc.cli.main", "engine"], env=environment, stdout=stream, stderr=stream
        )
    try:
        poll_until(lambda: settings.engine_socket.exists() or process.poll() is not None, 120, "the engine")
        assert process.poll() is None, log.read_text()
        yield settings.engine_socket
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def make_app(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Flask]]:
    """``make_app(CHATSVC_X__Y="…")``: an application with three accounts; ``with_model=False``: no engine behind it."""
    with ExitStack() as stack:

        def make(*, with_model: bool = True, home: Path = tmp_path / "home", **environment: str) -> Flask:
            engine = request.getfixturevalue("engine_socket") if with_model else home / "no-engine.sock"
            home.mkdir(exist_ok=True)
            given = {"CHATSVC_HOME": str(home), "CHATSVC_ENGINE__SOCKET": str(engine), **CHEAP, **environment}
            app = create_app(load(given))
            held = app.extensions["held"] = Held(app)
            stack.callback(lambda: check_nothing_found(held))
            running = running_in(app)
            stack.callback(running.close)
            for name, password in PASSWORDS.items():
                with suppress(Conflict):  # the same home again: it has them
                    running.guard.accounts.add(name, password, [ROLES[name]])
            if with_model:
                poll_until(lambda: running.engine.status().ready, what="the engine client")
            return app

        yield make


def check_nothing_found(held: Held) -> None:
    """What an application answered in a test is what its document says."""
    assert held.findings == []


@pytest.fixture
def app(make_app: Callable[..., Flask], engine_socket: Path) -> Flask:
    """An application with a model behind it."""
    del engine_socket  # named here, so that whoever asks for an application is known to need an engine
    return make_app()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """A client of :func:`app`, at 127.0.0.1."""
    return app.test_client()


@pytest.fixture
def bare_app(make_app: Callable[..., Flask]) -> Flask:
    """An application with no engine behind it: for what needs no model."""
    return make_app(with_model=False)


@pytest.fixture
def bare_client(bare_app: Flask) -> FlaskClient:
    """A client of :func:`bare_app`."""
    return bare_app.test_client()


@pytest.fixture
def login(request: pytest.FixtureRequest) -> Callable[..., dict[str, str]]:
    """``login("alice")``: log in and return the headers of an authenticated request."""

    def log_in(name: str = "alice", *, at: FlaskClient | None = None) -> dict[str, str]:
        client = at if at is not None else request.getfixturevalue("client")
        answer = client.post("/login", json={"username": name, "password": PASSWORDS[name]})
        assert answer.status_code == 200, answer.json
        return {"Authorization": f"Bearer {answer.json['access_token']}"}

    return log_in


@dataclass(frozen=True)
class Server:
    """A real gunicorn on a port of the loopback address."""

    url: str
    port: int
    key: str
    settings: Settings
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


@pytest.fixture(scope="session")
def serve(engine_socket: Path) -> Callable[..., AbstractContextManager[Server]]:
    """``with serve(home, CHATSVC_X__Y="…") as server``: gunicorn with its real configuration, an API key of alice's."""

    @contextmanager
    def started(home: Path, **environment: str) -> Iterator[Server]:
        port = int(environment.get("CHATSVC_SERVER__PORT") or free_port())
        given = {
            **CHEAP,
            "CHATSVC_HOME": str(home),
            "CHATSVC_ENGINE__SOCKET": str(engine_socket),
            "CHATSVC_SERVER__HOST": "127.0.0.1",
            "CHATSVC_SERVER__PORT": str(port),
            "CHATSVC_SERVER__DRAIN_TIMEOUT_S": "5",
            "CHATSVC_LIMITS__MAX_WAITING": "32",
            **environment,
        }
        settings = load(given)
        server = Server(f"http://127.0.0.1:{port}", port, _with_accounts(settings), settings, home / "web.log")
        with server.log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "-c", str(_gunicorn_configuration())],
                env={**os.environ, **given},
                stdout=stream,
                stderr=stream,
            )
        try:
            poll_until(lambda: _is_ready(server.url) or process.poll() is not None, 60, "gunicorn")
            assert process.poll() is None, server.log.read_text()
            yield dataclasses.replace(server, process=process)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    return started


@pytest.fixture(scope="session")
def server(
    serve: Callable[..., AbstractContextManager[Server]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The application as it is served, for the whole session."""
    given = {"CHATSVC_SERVER__KEEP_ALIVE_S": "0.2", "CHATSVC_GUARD__TRUSTED_PROXIES": '["127.0.0.8/32"]'}
    with serve(tmp_path_factory.mktemp("server"), **given) as started:
        yield started


def free_port() -> int:
    """A port that nobody listens on, chosen by the system."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _with_accounts(settings: Settings) -> str:
    guard = assemble(guard_options(settings))
    try:
        for name, password in PASSWORDS.items():
            with suppress(Conflict):  # another replica made them
                guard.accounts.add(name, password, [ROLES[name]])
        return guard.api_keys.create(NewKey("alice", "tests", ["chat"]))[0]
    finally:
        guard.close()


def _gunicorn_configuration() -> Path:

    return resource_path("config/gunicorn.conf.py")


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False
