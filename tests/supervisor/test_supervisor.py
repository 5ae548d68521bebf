"""The supervisor with real child processes, real signals and the real loop of the engine around a scripted runner."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from chatsvc.engine.protocol import Finished, Sampling
from chatsvc.engine.web_side.client import EngineClient
from chatsvc.errors import EngineUnavailable
from chatsvc.models.card import ModelCard
from chatsvc.supervisor.child import Command
from chatsvc.supervisor.supervisor import EXIT_COULD_NOT, EXIT_STOPPED, Processes, Supervisor, _Pauses

pytestmark = pytest.mark.slow  # real processes, and the pauses between them

ENGINE = Path(__file__).with_name("scripted_engine.py")
OVER = threading.Event()
STUBBORN = (
    "import signal, time\nfor s in (signal.SIGTERM, signal.SIGQUIT): signal.signal(s, lambda *a: None)\ntime.sleep(600)"
)


def command(name: str, *arguments: str) -> Command:
    return Command(name=name, arguments=[sys.executable, *arguments], environment=dict(os.environ))


@dataclass
class Service:
    """A home with processes, and functions that act on them while the supervisor runs in the main thread."""

    home: Path
    ready: threading.Event = field(default_factory=threading.Event)
    answers: bool = True
    fit: bool = True

    def processes(self, web: str = "import time; time.sleep(600)") -> Processes:
        socket = self.home / "engine.sock"
        return Processes(
            engine=replace(
                command("engine", str(ENGINE), str(self.home)),
                environment={**os.environ, "CHATSVC_ENGINE__SOCKET": str(socket)},
            ),
            web=command("web", "-c", web),
            engine_socket=socket,
            drain_timeout_s=8.0,
            stall_timeout_s=1.5,
            answers=lambda: self.answers,
            on_ready=self.ready.set,
            two_engines_fit=lambda _pid: self.fit,
        )

    def starts(self) -> list[int]:
        path = self.home / "starts"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def run(self, steps: Callable[[], None], processes: Processes | None = None) -> int:
        """Supervise until ``steps`` have been taken, then stop. Signals go to the main thread alone."""
        main = threading.get_ident()
        failures: list[BaseException] = []
        OVER.clear()

        def drive() -> None:
            try:
                steps()
            except BaseException as error:  # noqa: BLE001  (raised again in the main thread)
                failures.append(error)
            finally:
                signal.pthread_kill(main, signal.SIGTERM)

        driver = threading.Thread(target=drive)
        driver.start()
        try:
            code = Supervisor(processes or self.processes()).run()
        finally:
            OVER.set()
            driver.join()
            signal.sigtimedwait({signal.SIGTERM}, 0) if signal.SIGTERM in signal.sigpending() else None
        if failures:
            raise failures[0]
        return code

    def hang_up(self) -> None:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGHUP)


@pytest.fixture
def service(tmp_path: Path):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    yield Service(tmp_path)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.fixture
def client(service: Service):
    client = EngineClient(service.home / "engine.sock", stall_timeout_s=1.5)
    client.start()
    yield client
    client.close()


def until(condition: Callable[[], object], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        assert not OVER.is_set(), "the supervisor ended before"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def read_to_end(generation) -> list[int]:
    tokens: list[int] = []
    while not isinstance(piece := generation.read(10), Finished):
        tokens += piece.ids if piece else []
    assert piece.reason == "length"
    return tokens


def test_it_tells_when_the_service_first_answers_and_leaves_no_child_behind(service: Service) -> None:
    service.answers = False

    def steps() -> None:
        until((service.home / "engine.sock").exists)
        time.sleep(1)
        assert not service.ready.is_set()
        service.answers = True
        assert service.ready.wait(10)

    assert service.run(steps) == EXIT_STOPPED
    assert not any(alive(pid) for pid in service.starts())


def test_a_refused_model_at_start_ends_the_service_with_an_error(service: Service) -> None:
    (service.home / "refuse").touch()
    assert service.run(lambda: OVER.wait(20)) == EXIT_COULD_NOT
    assert len(service.starts()) == 1


def test_a_web_process_that_cannot_start_ends_the_service_with_an_error(service: Service) -> None:
    processes = service.processes(web="raise SystemExit(1)")
    assert service.run(lambda: OVER.wait(20), processes) == EXIT_COULD_NOT


def test_an_engine_that_is_killed_before_the_service_answers_gets_another_try(service: Service) -> None:
    service.answers = False

    def steps() -> None:
        until((service.home / "engine.sock").exists)
        os.kill(service.starts()[0], signal.SIGKILL)
        until(lambda: len(service.starts()) == 2)
        service.answers = True
        assert service.ready.wait(10)

    assert service.run(steps) == EXIT_STOPPED


def test_an_engine_that_is_killed_again_and_again_at_start_ends_the_service(service: Service) -> None:
    service.answers = False

    def steps() -> None:
        for number in range(3):
            until(lambda number=number: len(service.starts()) > number)
            os.kill(service.starts()[number], signal.SIGKILL)
        OVER.wait(20)

    assert service.run(steps) == EXIT_COULD_NOT


def test_a_killed_engine_is_back_by_itself(service: Service, client: EngineClient) -> None:
    def steps() -> None:
        assert service.ready.wait(20)
        until(lambda: client.status().ready)
        generation = client.submit([1], Sampling(max_tokens=1000), "")
        os.kill(service.starts()[0], signal.SIGKILL)
        with pytest.raises(EngineUnavailable):
            read_to_end(generation)
        until(lambda: len(service.starts()) == 2)
        until(lambda: client.status().ready)

    assert service.run(steps) == EXIT_STOPPED


def test_a_web_process_that_ends_is_started_again(service: Service) -> None:
    web = f"open({str(service.home / 'web')!r}, 'a').write('x'); import time; time.sleep(3)"

    def steps() -> None:
        assert service.ready.wait(20)
        until(lambda: (service.home / "web").read_text() == "xx")

    assert service.run(steps, service.processes(web)) == EXIT_STOPPED


def test_an_engine_whose_step_hangs_is_replaced(service: Service, client: EngineClient) -> None:
    def steps() -> None:
        assert service.ready.wait(20)
        until(lambda: client.status().ready)
        (service.home / "hang").touch()
        client.submit([1], Sampling(max_tokens=1000), "")
        until(lambda: len(service.starts()) == 2)
        (service.home / "hang").unlink()
        until(lambda: client.status().ready)
        assert not alive(service.starts()[0])

    assert service.run(steps) == EXIT_STOPPED


def test_a_long_idle_engine_is_not_taken_for_hung(service: Service) -> None:
    def steps() -> None:
        assert service.ready.wait(20)
        time.sleep(2.5)

    assert service.run(steps) == EXIT_STOPPED
    assert len(service.starts()) == 1


def test_a_swap_cuts_no_stream_and_refuses_no_request(service: Service, client: EngineClient) -> None:
    def steps() -> None:
        assert service.ready.wait(20)
        until(lambda: client.status().ready)
        old = client.submit([1], Sampling(max_tokens=200), "")
        service.hang_up()
        short = []
        while len(service.starts()) < 2 or alive(service.starts()[0]):
            short.append(client.submit([1], Sampling(max_tokens=2), ""))
            assert read_to_end(short[-1]) == [7, 7]
        assert read_to_end(old) == [7] * 200
        assert len(short) > 20

    assert service.run(steps) == EXIT_STOPPED


def test_a_swap_without_memory_for_two_lets_the_old_engine_finish_first(service: Service, client: EngineClient) -> None:
    service.fit = False

    def steps() -> None:
        assert service.ready.wait(20)
        until(lambda: client.status().ready)
        old = client.submit([1], Sampling(max_tokens=100), "")
        service.hang_up()
        time.sleep(1)
        assert len(service.starts()) == 1
        assert read_to_end(old) == [7] * 100
        until(lambda: len(service.starts()) == 2)
        until(lambda: client.status().ready)

    assert service.run(steps) == EXIT_STOPPED


def test_a_new_engine_that_refuses_its_model_leaves_the_old_one_serving(service: Service, client: EngineClient) -> None:
    def steps() -> None:
        assert service.ready.wait(20)
        until(lambda: client.status().ready)
        (service.home / "refuse").touch()
        service.hang_up()
        until(lambda: len(service.starts()) == 2)
        until(lambda: not alive(service.starts()[1]))
        assert read_to_end(client.submit([1], Sampling(max_tokens=2), "")) == [7, 7]
        assert alive(service.starts()[0])

    assert service.run(steps) == EXIT_STOPPED


@pytest.mark.parametrize("fault", ["mute", "unusable"])
def test_a_new_engine_that_does_not_answer_or_is_not_taken_leaves_the_old_one_serving(
    service: Service, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """It loads and listens; then it gives errors, or the web process cannot use its card. The old one is reachable."""
    monkeypatch.setattr("chatsvc.supervisor.swap._ADOPTION_TIMEOUT_S", 1.0)

    def prepare(card: ModelCard) -> None:
        if card.name == "unusable":
            raise ValueError("no such template")

    def steps() -> None:
        client = EngineClient(service.home / "engine.sock", stall_timeout_s=1.5)
        client.start(prepare)
        try:
            assert service.ready.wait(20)
            until(lambda: client.status().ready)
            long = client.submit([1], Sampling(max_tokens=150), "")
            (service.home / fault).touch()
            service.hang_up()
            until(lambda: len(service.starts()) == 2)
            until(lambda: not alive(service.starts()[1]))
            assert alive(service.starts()[0])
            assert client.status().ready
            assert read_to_end(long) == [7] * 150
            (service.home / fault).unlink()
            # The web process looks at the path again five seconds after a model that it could not use.
            monkeypatch.setattr("chatsvc.supervisor.swap._ADOPTION_TIMEOUT_S", 15.0)
            service.hang_up()  # another try succeeds
            until(lambda: len(service.starts()) == 3 and not alive(service.starts()[0]))
            assert read_to_end(client.submit([1], Sampling(max_tokens=2), "")) == [7, 7]
        finally:
            client.close()
        assert {path.name for path in service.home.glob("engine.sock*")} == {"engine.sock"}

    assert service.run(steps) == EXIT_STOPPED


def test_without_a_web_process_that_takes_it_a_new_engine_waits(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatsvc.supervisor.swap._ADOPTION_TIMEOUT_S", 1.0)

    def steps() -> None:
        assert service.ready.wait(20)
        service.hang_up()
        until(lambda: len(service.starts()) == 2)
        until(lambda: not alive(service.starts()[1]))
        assert alive(service.starts()[0])

    assert service.run(steps) == EXIT_STOPPED


def test_an_engine_that_hangs_while_it_loads_is_ended_by_its_own_clock(service: Service) -> None:
    """What the engine arms while it loads: the kernel's default action, which needs no Python."""
    code = "import signal, time; signal.setitimer(signal.ITIMER_REAL, 0.2); time.sleep(600)"
    processes = replace(service.processes(), engine=command("engine", "-c", code))
    assert Supervisor(processes).run() == EXIT_COULD_NOT


def test_a_stop_lets_running_sequences_finish(service: Service, client: EngineClient) -> None:
    running = []

    def steps() -> None:
        assert service.ready.wait(20)
        until(lambda: client.status().ready)
        running.append(client.submit([1], Sampling(max_tokens=100), ""))

    assert service.run(steps) == EXIT_STOPPED
    assert read_to_end(running[0]) == [7] * 100


def test_a_stop_ends_by_its_deadline_whatever_still_runs(service: Service, client: EngineClient) -> None:
    started: list[float] = []

    def steps() -> None:
        assert service.ready.wait(20)
        until(lambda: client.status().ready)
        client.submit([1], Sampling(max_tokens=100_000), "")
        started.append(time.monotonic())

    processes = replace(service.processes(web=STUBBORN), drain_timeout_s=4.0)
    assert service.run(steps, processes) == EXIT_STOPPED
    assert time.monotonic() - started[0] < 8
    assert not any(alive(pid) for pid in service.starts())


def test_a_second_signal_hurries(service: Service, client: EngineClient) -> None:
    def steps() -> None:
        assert service.ready.wait(20)
        until(lambda: client.status().ready)
        client.submit([1], Sampling(max_tokens=100_000), "")
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
        time.sleep(5)  # the two seconds in which a second one is the same press begin when the first is dealt with

    started = time.monotonic()
    assert service.run(steps, replace(service.processes(), drain_timeout_s=120.0)) == EXIT_STOPPED
    assert time.monotonic() - started < 60


def test_pauses_grow_and_shrink_again() -> None:
    pauses = _Pauses()
    assert [pauses.after(1) for _ in range(4)] == [0.0, 0.5, 1.0, 2.0]
    assert [pauses.after(1) for _ in range(9)][-1] == 30.0
    assert pauses.after(61) == 0.0
