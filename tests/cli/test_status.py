"""`chatsvc status` against the real application and a real engine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from flask import Flask
from werkzeug.serving import make_server

from chatsvc.app import running_in
from chatsvc.cli.main import main
from chatsvc.settings.load import load
from chatsvc.supervisor.address import address_file, write_address


@pytest.fixture
def status(monkeypatch: pytest.MonkeyPatch):
    def run(home: Path, *arguments: str, **environment: str) -> Result:
        for name, value in {"CHATSVC_HOME": str(home), **environment}.items():
            monkeypatch.setenv(name, value)
        return CliRunner().invoke(main, ["status", *arguments])

    return run


@contextmanager
def listening(app: Flask, home: Path) -> Iterator[None]:
    """The application on a port that only the address file names."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        write_address(load({"CHATSVC_HOME": str(home), "CHATSVC_SERVER__PORT": str(server.server_port)}))
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_service_that_serves_is_found_without_its_port(server, status) -> None:
    engine = {"CHATSVC_ENGINE__SOCKET": str(server.settings.engine_socket)}
    result = status(server.settings.home, **engine)
    assert result.exit_code == 0, result.output
    assert f"serving at {server.url} since 20" in result.stdout
    assert "model      smollm2-135m-instruct, loaded 20" in result.stdout
    assert "of 8 slots in use" in result.stdout
    assert "audit log  writable" in result.stdout
    told = json.loads(status(server.settings.home, "--json", **engine).stdout)
    assert (told["serving"], told["reason"], told["max_num_seqs"]) == (True, None, 8)


def test_a_service_that_is_not_there_is_code_1(status, tmp_path: Path) -> None:
    result = status(tmp_path / "home", CHATSVC_SERVER__PORT="1")
    assert result.exit_code == 1
    assert result.stdout == "chatsvc    NOT SERVING: nothing answers at http://127.0.0.1:1\n"


def test_what_keeps_it_from_serving_is_told(make_app, status, tmp_path: Path) -> None:
    app = make_app(with_model=False)
    with listening(app, tmp_path / "home"):
        result = status(tmp_path / "home")
        assert result.exit_code == 1
        assert result.stdout.startswith("chatsvc    NOT SERVING: the model is being loaded")
        running_in(app).drain.begin(1)
        assert "the service is shutting down" in status(tmp_path / "home").stdout


def test_a_machine_that_is_not_on_the_list_asks_the_engine(make_app, status, tmp_path: Path, engine_socket) -> None:
    app = make_app(with_model=False, CHATSVC_GUARD__ALLOWED_NETWORKS='["10.0.0.0/8"]')
    with listening(app, tmp_path / "home"):
        assert status(tmp_path / "home").exit_code == 1
        result = status(tmp_path / "home", CHATSVC_ENGINE__SOCKET=str(engine_socket))
    assert result.exit_code == 0
    assert "guard.allowed_networks" in result.stdout


def test_another_program_at_the_address_is_told(status, tmp_path: Path) -> None:
    with listening(Flask("other"), tmp_path / "home"):
        result = status(tmp_path / "home")
    assert result.exit_code == 1
    assert "another program" in result.stdout
    assert address_file(tmp_path / "home").exists()
