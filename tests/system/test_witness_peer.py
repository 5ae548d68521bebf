"""Two real services, each in processes of its own: one is the witness of the other's audit log."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import httpx
import pytest

from chatsvc.audit.format.layout import VKEY

PASSWORD = "alice's long password"
pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(240)]

WEB = [sys.executable, "-m", "chatsvc.cli.main", "serve", "--only", "web"]


def lives(port: str) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/livez", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def web(make_home, start, until, free_port):
    """``web(home, port)``: a web process that answers. ``web.home(…)``: the home of one."""

    def begin(home, port: str, *prefix: str):
        program = start([*prefix, *WEB], home.environment, home.path.parent / "web.log")
        until(lambda: program.process.poll() is not None or lives(port), 60, "the web process")
        assert program.process.poll() is None, program.text
        return program

    def home_of(**settings: str):
        port = str(free_port())
        return make_home("web", GUARD__ALLOWED_NETWORKS='["127.0.0.1"]', SERVER__PORT=port, **settings), port

    begin.home = home_of
    return begin


def size_held(folder: Path) -> int:
    return max((int(path.read_text().splitlines()[1]) for path in folder.glob("*.checkpoints")), default=0)


@pytest.fixture
def pair(web, tmp_path: Path):
    """The home of a witness, which serves; the home of a replica that is to be witnessed, and its port."""
    pinned, key_file = tmp_path / "witnessed.vkey", tmp_path / "witness.key"
    peer, peer_port = web.home(AUDIT__WITNESSED_KEYS_FILE=str(pinned))
    peer.add_account("replica-1", "a replica's long password", "witness")
    made = peer.run("key", "create", "--name", "w", "--scope", "witness", "--account", "replica-1")
    key_file.write_text(made.stdout)
    own, port = web.home(AUDIT__CHECKPOINT_RECORDS="4")
    own.add_account("alice", PASSWORD, "user")
    web(own, port).stop()  # begins the log, and with it its public key
    shutil.copy(own.path / "audit" / VKEY, pinned)
    own.settings["CHATSVC_AUDIT__WITNESS_PEER_URL"] = f"http://127.0.0.1:{peer_port}"
    own.settings["CHATSVC_AUDIT__WITNESS_PEER_KEY_FILE"] = str(key_file)
    web(peer, peer_port)
    return peer, own, port


def serve_and_log_in(web, own, port: str, times: int, *prefix: str) -> str:
    """What the service said meanwhile."""
    service = web(own, port, *prefix)
    for _ in range(times):
        answer = httpx.post(f"http://127.0.0.1:{port}/login", json={"username": "alice", "password": PASSWORD})
        assert answer.status_code == 200
    assert service.stop() == 0
    return service.text


def verify(own, held: Path) -> int:
    return own.run("audit", "verify", "--witness", str(held), check=False).returncode


def test_one_replica_witnesses_another_and_sees_its_rollback(web, pair, tmp_path: Path) -> None:
    peer, own, port = pair
    held = peer.path / "witnessed"
    serve_and_log_in(web, own, port, 1)
    before = size_held(held)
    assert before > 0
    shutil.copytree(own.path, tmp_path / "twin")  # with its keys: somebody who has taken the whole machine
    serve_and_log_in(web, own, port, 6)
    size = size_held(held)
    assert size >= before + 12  # each login is two records
    assert verify(own, held) == 0

    shutil.rmtree(own.path)
    shutil.copytree(tmp_path / "twin", own.path)
    assert (verify(own, held), own.run("audit", "verify").returncode) == (5, 0)
    assert "it has seen" in serve_and_log_in(web, own, port, 1)
    assert size_held(held) == size

    assert "does not show that the log begins" in serve_and_log_in(
        web, own, port, 12
    )  # another history, and a longer one
    assert size_held(held) == size
    assert (verify(own, held), own.run("audit", "verify").returncode) == (1, 0)
    shown = peer.run("audit", "show", "--action", "audit.witness", "--outcome", "denied", "-n", "0").stdout
    assert "does not show that the log begins" in shown


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_one_connection_that_is_opened_is_the_configured_one(web, pair, tmp_path: Path, until) -> None:
    _, own, port = pair
    trace = tmp_path / "trace"
    # -D: strace is no parent, so that the service ends when it is told to.
    strace = (
        "strace",
        "-D",
        "-f",
        "-qq",
        "--seccomp-bpf",
        "-e",
        "trace=connect,sendto,sendmsg,sendmmsg",
        "-o",
        str(trace),
    )
    serve_and_log_in(web, own, port, 2, *strace)
    until(lambda: "sa_family=AF_INET" in trace.read_text(), 10, "the trace")
    peer_port = own.settings["CHATSVC_AUDIT__WITNESS_PEER_URL"].rpartition(":")[2]
    to_hosts = [line for line in trace.read_text().splitlines() if "sa_family=AF_INET" in line]
    assert [line for line in to_hosts if f"sin_port=htons({peer_port})" not in line] == []
    assert [line for line in to_hosts if '"127.0.0.1"' not in line] == []
