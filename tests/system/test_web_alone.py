"""The web process as a unit of its own (`chatsvc serve --only web`): what systemd and the containers run."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import httpx
import pytest

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

WEB = [sys.executable, "-m", "chatsvc.cli.main", "serve", "--only", "web"]


def test_it_answers_without_an_engine_and_ends_cleanly(make_home, start, until, free_port) -> None:
    port = str(free_port())
    home = make_home("web", GUARD__ALLOWED_NETWORKS='["127.0.0.1"]', SERVER__PORT=port, SERVER__DRAIN_TIMEOUT_S="5")
    web = start(WEB, home.environment, home.path.parent / "web.log")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:

        def lives() -> bool:
            assert web.process.poll() is None, web.text
            try:
                return client.get("/livez").status_code == 200
            except httpx.TransportError:
                return False

        until(lives)
        ready = client.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["status"] == "starting"
        assert client.get("/healthz").status_code == 503
    assert web.stop(signal.SIGTERM) == 0
    assert home.run("audit", "verify").returncode == 0


@pytest.mark.parametrize("arguments", [["serve"], ["serve", "--only", "web"]])
def test_nothing_starts_while_nobody_may_connect(make_home, arguments: list[str]) -> None:
    refused = make_home("nobody").run(*arguments, check=False)
    assert refused.returncode == 3
    assert "guard.allowed_networks is empty" in refused.stderr


def test_quickstart_does_not_serve_on_a_unix_socket(make_home, tmp_path: Path) -> None:
    refused = make_home("socket", SERVER__SOCKET=str(tmp_path / "s")).run("quickstart", check=False)
    assert refused.returncode == 3
    assert "use `chatsvc serve`" in refused.stderr
