"""The real engine process over the embedded model: what a supervisor and the web side see of it."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from chatsvc.engine.process import EXIT_COULD_NOT_START
from chatsvc.engine.protocol import Sampling
from chatsvc.engine.runners.native import library
from chatsvc.engine.web_side.client import EngineClient
from chatsvc.errors import EngineUnavailable
from chatsvc.models.store import ModelFolder
from tests.engine.conftest import read_all, wait_for

# "What is the capital of France?" in the model's template.
PARIS = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2,
         198, 1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]  # fmt: skip
PARIS_ANSWER = [504, 3575, 282, 4649, 314, 7042]  # "The capital of France is Paris"; then it may go on
PARIS_ID = 7042
GREEDY = Sampling(max_tokens=40, temperature=0)
LONG = Sampling(max_tokens=1500, temperature=0, ignore_eos=True)


@dataclass
class Home:
    """A CHATSVC_HOME of its own around the session's models."""

    path: Path
    models: Path

    @property
    def socket_path(self) -> Path:
        return self.path / "run" / "engine.sock"

    def environment(self, **extra: str) -> dict[str, str]:
        return {
            **os.environ,
            "CHATSVC_HOME": str(self.path),
            "CHATSVC_MODELS__DIRECTORY": str(self.models),
            "CHATSVC_ENGINE__MAX_NUM_SEQS": "4",
            **extra,
        }

    def start(self, *prefix: str, **extra: str) -> subprocess.Popen[bytes]:
        arguments = [*prefix, sys.executable, "-m", "chatsvc.cli.main", "engine"]
        return subprocess.Popen(arguments, env=self.environment(**extra))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, smollm2: ModelFolder) -> Home:
    path = tmp_path_factory.mktemp("home")
    shutil.copytree(smollm2.path.parent.parent / "keys", path / "keys")
    return Home(path, smollm2.path.parent)


@pytest.fixture(scope="module")
def engine(home: Home) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The running engine; the last of the list, because tests replace it."""
    processes = [home.start()]
    yield processes
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def web(home: Home, engine: list[subprocess.Popen[bytes]]) -> Iterator[EngineClient]:
    client = EngineClient(home.socket_path, stall_timeout_s=30)
    client.start()
    wait_for(lambda: client.status().ready, 60)
    yield client
    client.close()


def test_the_embedded_model_knows_the_capital_of_france(web: EngineClient) -> None:
    ids, finished = read_all(web.submit(PARIS, GREEDY, "alice"))
    assert ids[:6] == PARIS_ANSWER
    assert (finished.reason, finished.num_completion_tokens) == ("stop", len(ids) + 1)


def test_the_card_is_the_stores(web: EngineClient, smollm2: ModelFolder) -> None:
    card = web.card()
    assert card.runner == ("openvino" if library.missing() else "native")
    assert (card.name, card.digest, card.tokenizer_json) == (
        smollm2.name,
        smollm2.card().digest,
        smollm2.card().tokenizer_json,
    )


def test_eight_at_once_on_four_slots_are_all_answered(web: EngineClient) -> None:
    generations = [web.submit(PARIS, GREEDY, f"principal {number}") for number in range(8)]
    for generation in generations:
        ids, finished = read_all(generation)
        assert finished.reason == "stop"
        assert PARIS_ID in ids  # near ties in a batch may part; the answer does not


def test_cancel_frees_the_slot_within_a_second(web: EngineClient) -> None:
    generation = web.submit(PARIS, LONG, "alice")
    assert generation.read(30)
    started = time.monotonic()
    generation.cancel()
    read_all(generation)
    wait_for(lambda: web.status().num_running == 0)
    assert time.monotonic() - started < 10  # one second on a quiet machine


def test_the_process_is_closed_to_others(home: Home, engine: list[subprocess.Popen[bytes]], web: EngineClient) -> None:
    del web
    pid = engine[-1].pid
    assert stat.S_IMODE(home.socket_path.stat().st_mode) == 0o600
    core = [line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if "core file" in line]
    assert core[0].split()[4:6] == ["0", "0"]
    assert "Umask:\t0077" in Path(f"/proc/{pid}/status").read_text()
    assert Path(f"/proc/{pid}/environ").stat().st_uid == 0  # what is not dumpable belongs to root


def test_a_killed_engine_ends_its_generations_at_once_and_is_replaced(
    home: Home, engine: list[subprocess.Popen[bytes]], web: EngineClient
) -> None:
    generation = web.submit(PARIS, LONG, "alice")
    assert generation.read(30)
    engine[-1].kill()
    started = time.monotonic()
    with pytest.raises(EngineUnavailable):
        read_all(generation)
    assert time.monotonic() - started < 5  # the socket ends, and no time-out is waited for
    wait_for(lambda: not web.status().ready)
    engine.append(home.start())  # over the dead one's socket
    wait_for(lambda: web.status().ready, 60)
    assert PARIS_ID in read_all(web.submit(PARIS, GREEDY, "alice"))[0]


def test_a_swap_lets_old_streams_finish_and_serves_on(
    home: Home, engine: list[subprocess.Popen[bytes]], web: EngineClient
) -> None:
    old = engine[-1]
    inode = home.socket_path.stat().st_ino
    engine.append(home.start())
    wait_for(lambda: home.socket_path.stat().st_ino != inode, 60)
    running = web.submit(PARIS, Sampling(max_tokens=150, temperature=0, ignore_eos=True), "alice")
    old.send_signal(signal.SIGTERM)
    for _ in range(5):
        assert web.status().ready
        assert PARIS_ID in read_all(web.submit(PARIS, GREEDY, "alice"))[0]
    assert read_all(running)[1].reason == "length"
    assert old.wait(30) == 0
    assert web.status().ready


def test_sigterm_drains_and_exits_with_zero(
    home: Home, engine: list[subprocess.Popen[bytes]], web: EngineClient
) -> None:
    generation = web.submit(PARIS, GREEDY, "alice")
    engine[-1].send_signal(signal.SIGTERM)
    assert PARIS_ID in read_all(generation)[0]
    assert engine[-1].wait(30) == 0
    assert not home.socket_path.exists()


def test_without_an_active_model_it_says_what_to_do(home: Home, tmp_path: Path) -> None:
    environment = home.environment(CHATSVC_MODELS__DIRECTORY=str(tmp_path))
    arguments = [sys.executable, "-m", "chatsvc.cli.main", "engine"]
    result = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == EXIT_COULD_NOT_START
    assert "chatsvc model import --embedded --activate" in result.stderr


def test_changed_weights_are_refused(home: Home, smollm2: ModelFolder, tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(smollm2.path.parent, models, symlinks=True)
    weights = next(models.glob("*/model.gguf"))
    weights.chmod(0o600)
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size - 1)
    process = home.start(CHATSVC_MODELS__DIRECTORY=str(models), CHATSVC_HOME=str(home.path))
    assert process.wait(60) == EXIT_COULD_NOT_START


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_no_connection_is_even_tried(home: Home, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    process = home.start("strace", "-f", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(trace))
    try:
        wait_for(home.socket_path.exists, 120)
    finally:
        inner = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(inner[0]), signal.SIGTERM)
        process.wait(60)
    text = trace.read_text()
    assert "AF_INET" not in text
    assert "nscd" not in text
