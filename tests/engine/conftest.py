"""A loop in a thread on a real socket, a client of it, and the real model once a session."""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from chatsvc.engine.engine_side.connections import Clients
from chatsvc.engine.engine_side.loop import Loop, LoopOptions
from chatsvc.engine.protocol import Finished, Hello, Sampling
from chatsvc.engine.runners.base import Runner, RunnerOptions
from chatsvc.engine.runners.openvino.runner import OpenVinoRunner
from chatsvc.engine.sockets import Listener
from chatsvc.engine.web_side.client import EngineClient
from chatsvc.engine.web_side.generation import Generation
from chatsvc.models.store import ModelFolder, ModelStore
from chatsvc.models.supply import embedded
from tests.engine.scripted import ScriptedRunner


class LoopInThread:
    """An engine without its process: the real loop, sockets and frames."""

    def __init__(self, path: Path, runner: ScriptedRunner, options: LoopOptions) -> None:
        self.runner = runner
        self.clients = Clients(Listener(path), Hello(card=runner.card, max_num_seqs=runner.max_num_seqs, pid=1))
        self.loop = Loop(runner, self.clients, options)
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.loop.run()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.failure = error

    def drain(self) -> None:
        self.loop.request_drain()

    def join(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()


StartLoop = Callable[..., LoopInThread]


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "engine.sock"


@pytest.fixture
def start_loop(socket_path: Path) -> Iterator[StartLoop]:
    loops: list[LoopInThread] = []

    def start(runner: ScriptedRunner | None = None, **options: float) -> LoopInThread:
        quick = {"accept_while_draining_s": 0.2, "drain_timeout_s": 5.0, **options}
        loops.append(LoopInThread(socket_path, runner or ScriptedRunner(), LoopOptions(**quick)))
        return loops[-1]

    yield start
    for loop in loops:
        loop.drain()
    for loop in loops:
        loop.join()


@pytest.fixture
def client(socket_path: Path) -> Iterator[EngineClient]:
    client = EngineClient(socket_path, stall_timeout_s=10)
    client.start()
    yield client
    client.close()


def wait_for(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    """Poll until it holds."""
    pause = threading.Event()
    for _ in range(int(timeout_s / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it never came")


def read_all(generation: Generation, timeout_s: float = 60) -> tuple[list[int], Finished]:
    ids: list[int] = []
    for _ in range(int(timeout_s / 0.2)):
        got = generation.read(0.2)
        if isinstance(got, Finished):
            return ids, got
        ids += got.ids if got else []
    raise AssertionError("it never finished")


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """The embedded model in a store of its own."""
    home = tmp_path_factory.mktemp("models")
    return embedded.ensure(ModelStore(home / "models", home / "keys"))


@pytest.fixture(scope="session")
def openvino(smollm2: ModelFolder) -> OpenVinoRunner:
    """The embedded model in this process, warm."""
    options = RunnerOptions(max_num_seqs=4, num_threads=2, max_gap_ms=100)
    with smollm2.weights() as path:
        runner = OpenVinoRunner(path, smollm2.card(), options)
        runner.warm_up()
    return runner


def run(runner: Runner, work: Sequence[tuple[Sequence[int], Sampling]], keys: Sequence[str] = ()) -> list[list[int]]:
    """All at once; what each one got."""
    results: list[list[int]] = [[] for _ in work]
    for number, (prompt_ids, sampling) in enumerate(work):
        runner.add(number, prompt_ids, sampling, keys[number] if keys else "")
    num_open = len(work)
    while num_open:
        for output in runner.step():
            results[output.sequence_id] += output.token_ids
            num_open -= output.finish_reason is not None
    return results
