"""The client against real loops: reconnecting, stalls, hand-over, and generations whose engine is gone."""

import stat
import threading
import time
from pathlib import Path

import msgspec
import pytest

from chatsvc.engine.protocol import Heartbeat, Hello, Sampling, encode_frame
from chatsvc.engine.sockets import Listener
from chatsvc.engine.web_side.client import EngineClient, probe
from chatsvc.errors import Draining, EngineUnavailable
from tests.engine.conftest import StartLoop, read_all, wait_for
from tests.engine.scripted import REFUSED_ID, ScriptedRunner

GREEDY = Sampling(max_tokens=5, temperature=0)
LONG = Sampling(max_tokens=100_000, temperature=0)


def test_without_an_engine_everything_says_so(client: EngineClient) -> None:
    status = client.status()
    assert (status.ready, status.reason) == (False, "starting")
    with pytest.raises(EngineUnavailable):
        client.card()
    with pytest.raises(EngineUnavailable):
        client.submit([1], GREEDY, "alice")


def test_it_connects_when_an_engine_appears(client: EngineClient, start_loop: StartLoop) -> None:
    time.sleep(0.2)
    start_loop()
    wait_for(lambda: client.status().ready)
    assert client.card().name == "scripted"
    assert client.status().max_num_seqs == 4


def test_status_tells_what_runs(client: EngineClient, start_loop: StartLoop) -> None:
    start_loop()
    wait_for(lambda: client.status().ready)
    generation = client.submit([10], LONG, "alice")
    wait_for(lambda: client.status().num_running == 1)
    assert client.status().cache_usage == 0.25
    before = client.status().num_generated_tokens
    wait_for(lambda: client.status().num_generated_tokens > before)
    generation.cancel()
    wait_for(lambda: client.status().num_running == 0)


def test_thirty_two_threads_read_their_own_ids(client: EngineClient, start_loop: StartLoop) -> None:
    start_loop(ScriptedRunner(max_num_seqs=16, step_s=0.001))
    wait_for(lambda: client.status().ready)
    wrong: list[object] = []

    def talk(number: int) -> None:
        start = 10_000 * number
        ids, finished = read_all(client.submit([start], Sampling(max_tokens=50, temperature=0), "alice"))
        if ids != list(range(start + 1, start + 51)) or finished.reason != "length":
            wrong.append((number, ids))

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(1, 33)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_read_says_none_when_nothing_came_and_repeats_the_end(client: EngineClient, start_loop: StartLoop) -> None:
    start_loop(ScriptedRunner(step_s=0.3))
    wait_for(lambda: client.status().ready)
    generation = client.submit([10], Sampling(max_tokens=1, temperature=0), "alice")
    assert generation.read(0) is None
    assert generation.read(0.01) is None
    _, finished = read_all(generation)
    assert generation.read(0) is finished
    assert generation.card.name == "scripted"


def test_a_refused_sequence_is_an_error_to_its_reader(client: EngineClient, start_loop: StartLoop) -> None:
    start_loop()
    wait_for(lambda: client.status().ready)
    generation = client.submit([REFUSED_ID], GREEDY, "alice")
    for _ in range(2):
        with pytest.raises(EngineUnavailable):
            read_all(generation)


def test_an_engine_that_dies_ends_its_generations_and_a_new_one_is_found(
    client: EngineClient, start_loop: StartLoop
) -> None:
    def die() -> None:
        if dying.is_set():
            raise RuntimeError("crash")

    dying = threading.Event()
    start_loop(ScriptedRunner(before_step=die))
    wait_for(lambda: client.status().ready)
    generations = [client.submit([10], LONG, "alice") for _ in range(3)]
    assert generations[0].read(10)
    dying.set()
    for generation in generations:
        with pytest.raises(EngineUnavailable):
            read_all(generation)
    wait_for(lambda: not client.status().ready)
    assert client.status().reason == "died"
    start_loop()
    wait_for(lambda: client.status().ready)
    assert read_all(client.submit([10], GREEDY, "alice"))[1].reason == "length"


def test_an_engine_that_hangs_is_given_up(socket_path: Path, start_loop: StartLoop) -> None:
    hanging = threading.Event()
    engine = start_loop(ScriptedRunner(before_step=lambda: hanging.wait(20) and None))
    client = EngineClient(socket_path, stall_timeout_s=1)
    client.start()
    try:
        wait_for(lambda: client.status().ready)
        generation = client.submit([10], LONG, "alice")
        with pytest.raises(EngineUnavailable, match="hangs"):
            read_all(generation)
        status = client.status()
        assert (status.ready, status.reason) == (False, "stalled")
        with pytest.raises(EngineUnavailable):
            probe(socket_path, 0.5)
        wait_for(lambda: client.status().reason == "stalled")
    finally:
        hanging.set()
        client.close()
    wait_for(lambda: not engine.runner.entries)


def test_steps_without_progress_are_a_hang_too(socket_path: Path) -> None:
    listener = Listener(socket_path)
    client = EngineClient(socket_path, stall_timeout_s=0.5)
    client.start()
    try:
        connections: list = []
        wait_for(lambda: accept_into(connections, listener))
        hello = Hello(card=ScriptedRunner().card, max_num_seqs=1, pid=1)
        beat = Heartbeat(
            status="serving", num_steps=7, num_running=1, num_waiting=0, last_step_s=0.1, num_generated_tokens=1
        )
        sock = connections[0]
        sock.setblocking(True)
        sock.sendall(encode_frame(hello) + encode_frame(beat))
        wait_for(lambda: client.status().ready)
        for _ in range(8):
            time.sleep(0.1)
            try:
                sock.sendall(encode_frame(beat))
            except BrokenPipeError:
                break
        wait_for(lambda: client.status().reason == "stalled")
        sock.close()
    finally:
        client.close()
        listener.close()


@pytest.mark.parametrize(("folder_mode", "socket_mode"), [(0o700, 0o600), (0o750, 0o660)])
def test_the_socket_is_open_to_the_group_that_may_enter_its_folder(
    tmp_path: Path, folder_mode: int, socket_mode: int
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(folder_mode)
    listener = Listener(tmp_path / "run" / "engine.sock")
    assert stat.S_IMODE(listener.path.stat().st_mode) == socket_mode
    listener.close()


def accept_into(connections: list, listener: Listener) -> bool:
    sock = listener.accept()
    if sock is not None:
        connections.append(sock)
    return bool(connections)


def test_garbage_from_an_engine_is_a_dead_engine(socket_path: Path) -> None:
    listener = Listener(socket_path)
    client = EngineClient(socket_path, stall_timeout_s=5)
    client.start()
    try:
        connections: list = []
        wait_for(lambda: accept_into(connections, listener))
        connections[0].send(b"\x00\x00\x00\x02{}")
        connections[0].setblocking(True)
        assert connections[0].recv(1) == b""
        connections[0].close()
        assert not client.status().ready
    finally:
        client.close()
        listener.close()


def test_a_swap_refuses_and_cuts_nothing(client: EngineClient, start_loop: StartLoop) -> None:
    old = start_loop(accept_while_draining_s=1.0)
    wait_for(lambda: client.status().ready)
    running = client.submit([10], Sampling(max_tokens=700, temperature=0), "alice")
    assert running.read(10)
    start_loop()  # takes the name over, as a new engine does
    old.drain()
    not_ready = 0
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        not_ready += not client.status().ready
        assert read_all(client.submit([10], GREEDY, "alice"))[1].reason == "length"
    assert not_ready == 0
    _, finished = read_all(running)
    assert finished.reason == "length"
    assert finished.num_completion_tokens == 700
    old.join()
    assert client.status().ready


def test_a_drain_without_successor_says_draining_until_a_new_engine_comes(
    client: EngineClient, start_loop: StartLoop
) -> None:
    old = start_loop(accept_while_draining_s=1.5)
    wait_for(lambda: client.status().ready)
    old.drain()
    wait_for(lambda: client.status().draining)
    wait_for(lambda: not client.status().ready)
    assert client.status().reason == "draining"
    with pytest.raises(Draining):
        client.submit([10], GREEDY, "alice")
    old.join()
    wait_for(lambda: client.status().max_num_seqs == 0)
    with pytest.raises(Draining):
        client.submit([10], GREEDY, "alice")
    start_loop()
    wait_for(lambda: client.status().ready)


def test_ids_of_another_model_are_not_submitted(client: EngineClient, start_loop: StartLoop) -> None:
    start_loop()
    wait_for(lambda: client.status().ready)
    card = client.card()
    assert read_all(client.submit([10], GREEDY, "alice", card))[1].reason == "length"
    other = msgspec.structs.replace(card, digest="f" * 64)
    with pytest.raises(Draining) as raised:
        client.submit([10], GREEDY, "alice", other)
    assert raised.value.code == "model_changed"


def test_a_submit_that_comes_too_late_is_told_to_come_again(client: EngineClient, start_loop: StartLoop) -> None:
    engine = start_loop(ScriptedRunner(max_num_seqs=1), accept_while_draining_s=0.0)
    wait_for(lambda: client.status().ready)
    first = client.submit([10], Sampling(max_tokens=300, temperature=0), "alice")
    assert first.read(10)
    engine.drain()
    wait_for(lambda: client.status().draining)
    late = client.submit([10], GREEDY, "alice")
    with pytest.raises(Draining):
        read_all(late)
    first.cancel()
    read_all(first)


def test_closing_the_client_ends_its_generations(socket_path: Path, start_loop: StartLoop) -> None:
    engine = start_loop()
    client = EngineClient(socket_path, stall_timeout_s=5)
    client.start()
    wait_for(lambda: client.status().ready)
    generation = client.submit([10], LONG, "alice")
    assert generation.read(10)
    client.close()
    with pytest.raises(EngineUnavailable):
        read_all(generation)
    with pytest.raises(EngineUnavailable):
        client.submit([10], GREEDY, "alice")
    wait_for(lambda: not engine.runner.entries)


def test_probe_tells_the_heartbeat_or_that_nobody_is_there(socket_path: Path, start_loop: StartLoop) -> None:
    with pytest.raises(EngineUnavailable):
        probe(socket_path, 1)
    start_loop()
    assert probe(socket_path, 5).status == "serving"


def test_a_model_whose_preparation_hangs_stops_nobody(socket_path: Path, start_loop: StartLoop) -> None:
    """What a model's chat template does must not keep the thread from reading the engines that work."""
    hanging, release = threading.Event(), threading.Event()

    def prepare(_card: object) -> None:
        if hanging.is_set():
            release.wait(30)

    client = EngineClient(socket_path, stall_timeout_s=5)
    client.start(prepare)
    try:
        old = start_loop(accept_while_draining_s=1.0)
        wait_for(lambda: client.status().ready)
        hanging.set()
        running = client.submit([10], Sampling(max_tokens=200, temperature=0), "alice")
        start_loop()
        old.drain()
        wait_for(lambda: client.status().draining)
        _, finished = read_all(running)
        assert finished.num_completion_tokens == 200
        hanging.clear()
        release.set()
        wait_for(lambda: client.status().ready)
    finally:
        release.set()
        client.close()


def test_a_model_that_cannot_be_prepared_is_said_to_be_unusable(socket_path: Path, start_loop: StartLoop) -> None:
    tries: list[float] = []

    def prepare(_card: object) -> None:
        tries.append(time.monotonic())
        raise ValueError("unusable")

    client = EngineClient(socket_path, stall_timeout_s=5)
    client.start(prepare)
    start_loop()
    try:
        wait_for(lambda: client.status().reason == "unusable model")
        time.sleep(0.8)
        assert len(tries) == 1  # not again and again without a pause
    finally:
        client.close()
