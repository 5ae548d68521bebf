"""The loop over real sockets, with a scripted runner."""

import socket
import struct
import time
from pathlib import Path

import pytest

from chatsvc.engine.protocol import (
    Cancel,
    Delta,
    Finished,
    FrameBuffer,
    Heartbeat,
    Hello,
    Sampling,
    Submit,
    decode_to_web,
    encode_frame,
)
from chatsvc.engine.web_side.client import EngineClient, probe
from tests.engine.conftest import StartLoop, read_all, wait_for
from tests.engine.scripted import EOS_ID, REFUSED_ID, RESTS, ScriptedRunner

GREEDY = Sampling(max_tokens=5, temperature=0)
LONG = Sampling(max_tokens=100_000, temperature=0)


class RawClient:
    """A client that can misbehave."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(str(path))
        self.frames = FrameBuffer()
        self.messages: list[object] = []

    def send(self, *messages: Submit | Cancel) -> None:
        self.sock.sendall(b"".join(encode_frame(message) for message in messages))

    def read_until(self, kind: type | tuple[type, ...]) -> object:
        while True:
            for message in self.messages:
                if isinstance(message, kind):
                    self.messages.remove(message)
                    return message
            data = self.sock.recv(65536)
            assert data, "the engine closed the connection"
            self.messages += [decode_to_web(payload) for payload in self.frames.feed(data)]

    def is_closed_by_engine(self) -> bool:
        try:
            while self.sock.recv(65536):
                pass
        except ConnectionError:
            return True
        return True

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


def test_a_sequence_streams_its_ids_and_says_how_it_ended(start_loop: StartLoop, client: EngineClient) -> None:
    start_loop()
    wait_for(lambda: client.status().ready)
    ids, finished = read_all(client.submit([10, 20], GREEDY, "alice"))
    assert ids == [21, 22, 23, 24, 25]
    assert (finished.reason, finished.num_completion_tokens) == ("length", 5)


def test_an_end_of_sequence_id_is_counted_but_not_shown(start_loop: StartLoop, client: EngineClient) -> None:
    start_loop()
    wait_for(lambda: client.status().ready)
    ids, finished = read_all(client.submit([EOS_ID - 2], GREEDY, "alice"))
    assert ids == [1]
    assert (finished.reason, finished.num_completion_tokens) == ("stop", 2)


def test_the_first_frames_are_hello_and_a_heartbeat(start_loop: StartLoop, socket_path: Path) -> None:
    start_loop()
    with RawClient(socket_path) as raw:
        hello = raw.read_until(Hello)
        assert hello.card.name == "scripted"
        assert not raw.messages or isinstance(raw.messages[0], Heartbeat)
        assert raw.read_until(Heartbeat).status == "serving"


def test_more_than_fit_wait_their_turn(start_loop: StartLoop, client: EngineClient) -> None:
    engine = start_loop(ScriptedRunner(max_num_seqs=2))
    wait_for(lambda: client.status().ready)
    generations = [client.submit([10 * number], GREEDY, "alice") for number in range(1, 8)]
    assert [read_all(one)[0][0] for one in generations] == [11, 21, 31, 41, 51, 61, 71]
    assert max(engine.runner.batch_sizes) == 2


def test_a_burst_at_an_idle_engine_starts_together(start_loop: StartLoop, socket_path: Path) -> None:
    engine = start_loop(linger_s=1.0)
    with RawClient(socket_path) as one, RawClient(socket_path) as two:
        one.read_until(Hello)
        two.read_until(Hello)
        one.send(Submit(sequence_id=1, prompt_ids=[10], sampling=GREEDY))
        two.send(Submit(sequence_id=1, prompt_ids=[20], sampling=GREEDY, sharing_key="bob"))
        assert one.read_until(Delta).token_ids == [11]
        assert two.read_until(Delta).token_ids == [21]
        assert set(engine.runner.batch_sizes) == {2}
        assert sorted(engine.runner.sharing_keys) == ["", "bob"]  # whose socket is looked at first is chance


def test_cancel_ends_a_running_sequence(start_loop: StartLoop, client: EngineClient) -> None:
    engine = start_loop()
    wait_for(lambda: client.status().ready)
    generation = client.submit([10], LONG, "alice")
    assert generation.read(10)
    generation.cancel()
    ids, finished = read_all(generation)
    assert finished.reason == "cancelled"
    assert finished.num_completion_tokens >= len(ids)
    assert len(engine.runner.cancelled) == 1
    generation.cancel()  # it has ended: nothing happens
    wait_for(lambda: client.status().num_running == 0)


def test_cancel_ends_a_sequence_in_prefill(start_loop: StartLoop, client: EngineClient) -> None:
    engine = start_loop()
    wait_for(lambda: client.status().ready)
    generation = client.submit([10] * 100_000, LONG, "alice")
    wait_for(lambda: len(engine.runner.batch_sizes) > 2)
    generation.cancel()
    ids, finished = read_all(generation)
    assert (ids, finished.reason, finished.num_completion_tokens) == ([], "cancelled", 0)


def test_cancel_ends_a_sequence_that_waits(start_loop: StartLoop, client: EngineClient) -> None:
    engine = start_loop(ScriptedRunner(max_num_seqs=1))
    wait_for(lambda: client.status().ready)
    first = client.submit([10], LONG, "alice")
    assert first.read(10)
    second = client.submit([20], LONG, "alice")
    wait_for(lambda: client.status().num_waiting == 1)
    second.cancel()
    assert read_all(second)[1].reason == "cancelled"
    assert engine.runner.cancelled == []
    first.cancel()


def test_cancelling_an_unknown_sequence_is_ignored(start_loop: StartLoop, socket_path: Path) -> None:
    start_loop()
    with RawClient(socket_path) as raw:
        raw.send(Cancel(sequence_id=99), Submit(sequence_id=1, prompt_ids=[10], sampling=GREEDY))
        assert raw.read_until(Finished).reason == "length"


def test_a_closed_connection_cancels_what_it_asked_for(start_loop: StartLoop, socket_path: Path) -> None:
    engine = start_loop(ScriptedRunner(max_num_seqs=1))
    with RawClient(socket_path) as raw:
        raw.send(
            Submit(sequence_id=1, prompt_ids=[10], sampling=LONG), Submit(sequence_id=2, prompt_ids=[10], sampling=LONG)
        )
        raw.read_until(Delta)
    wait_for(lambda: engine.runner.cancelled == [1])
    wait_for(lambda: probe(socket_path, 5).num_waiting == 0)


def test_a_client_that_does_not_read_is_dropped_and_others_do_not_feel_it(
    start_loop: StartLoop, socket_path: Path, client: EngineClient
) -> None:
    engine = start_loop(ScriptedRunner(max_num_seqs=64, step_s=0))
    wait_for(lambda: client.status().ready)
    with RawClient(socket_path) as deaf:
        deaf.send(*[Submit(sequence_id=n, prompt_ids=[10], sampling=LONG) for n in range(1, 60)])
        wait_for(lambda: len(engine.runner.cancelled) == 59, timeout_s=60)
        assert deaf.is_closed_by_engine()
    assert read_all(client.submit([10], GREEDY, "alice"))[1].reason == "length"


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\xff\xff\xff",
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">I", 3) + b"abc",
        struct.pack(">I", 0),
        encode_frame(Cancel(sequence_id=1)).replace(b"cancel", b"mangle"),
        encode_frame(Heartbeat(status="serving", num_steps=0, num_running=0, num_waiting=0, last_step_s=0,
                               num_generated_tokens=0)),
        struct.pack(">I", 9) + b"\x82\xa4type\xa6submit"[:9],
    ],
)  # fmt: skip
def test_garbage_drops_its_sender_only(
    start_loop: StartLoop, socket_path: Path, client: EngineClient, garbage: bytes
) -> None:
    start_loop()
    wait_for(lambda: client.status().ready)
    with RawClient(socket_path) as raw:
        raw.sock.sendall(garbage)
        assert raw.is_closed_by_engine()
    assert read_all(client.submit([10], GREEDY, "alice"))[1].reason == "length"


def test_a_sequence_id_used_twice_drops_the_client(start_loop: StartLoop, socket_path: Path) -> None:
    engine = start_loop()
    with RawClient(socket_path) as raw:
        same = Submit(sequence_id=1, prompt_ids=[10], sampling=LONG)
        raw.send(same, same)
        assert raw.is_closed_by_engine()
    wait_for(lambda: not engine.runner.entries)


def test_what_the_runner_refuses_ends_in_an_error_and_the_others_go_on(
    start_loop: StartLoop, socket_path: Path
) -> None:
    start_loop()
    with RawClient(socket_path) as raw:
        raw.send(
            Submit(sequence_id=1, prompt_ids=[REFUSED_ID], sampling=GREEDY),
            Submit(sequence_id=2, prompt_ids=[10], sampling=GREEDY),
        )
        by_id = {(one := raw.read_until(Finished)).sequence_id: one for _ in range(2)}
        assert (by_id[1].reason, by_id[2].reason) == ("error", "length")


def test_heartbeats_come_while_idle_and_after_long_steps(start_loop: StartLoop, socket_path: Path) -> None:
    engine = start_loop()
    with RawClient(socket_path) as raw:
        for _ in range(4):
            raw.read_until(Heartbeat)
        engine.runner.before_step = lambda: time.sleep(0.6)
        raw.send(Submit(sequence_id=1, prompt_ids=[10], sampling=Sampling(max_tokens=2, temperature=0)))
        raw.read_until(Finished)
        beats = [message for message in raw.messages if isinstance(message, Heartbeat)]
        beat = max([*beats, raw.read_until(Heartbeat)], key=lambda one: one.num_steps)
        assert beat.last_step_s > 0.5


def test_the_runner_rests_until_all_is_done_whenever_nothing_runs(start_loop: StartLoop, client: EngineClient) -> None:
    engine = start_loop()
    wait_for(lambda: engine.runner.num_rests == RESTS and client.status().ready)
    read_all(client.submit([10], GREEDY, ""))
    wait_for(lambda: engine.runner.num_rests == 2 * RESTS)
    time.sleep(0.6)
    assert engine.runner.num_rests == 2 * RESTS


def test_draining_finishes_what_runs_and_refuses_what_comes_late(start_loop: StartLoop, socket_path: Path) -> None:
    engine = start_loop(accept_while_draining_s=0.3)
    with RawClient(socket_path) as raw:
        raw.send(Submit(sequence_id=1, prompt_ids=[10], sampling=Sampling(max_tokens=600, temperature=0)))
        raw.read_until(Delta)
        engine.drain()
        while raw.read_until(Heartbeat).status != "draining":
            pass
        raw.send(Submit(sequence_id=2, prompt_ids=[10], sampling=GREEDY))  # it was on its way
        assert raw.read_until(Finished).sequence_id == 2
        time.sleep(0.4)
        raw.send(Submit(sequence_id=3, prompt_ids=[10], sampling=GREEDY))
        late = raw.read_until(Finished)
        assert (late.sequence_id, late.reason, late.detail) == (3, "error", "draining")
        assert raw.read_until(Finished).reason == "length"
    engine.join()
    assert not socket_path.exists()


def test_the_drain_has_a_deadline(start_loop: StartLoop, socket_path: Path) -> None:
    engine = start_loop(drain_timeout_s=0.3)
    with RawClient(socket_path) as raw:
        raw.send(Submit(sequence_id=1, prompt_ids=[10], sampling=LONG))
        raw.read_until(Delta)
        engine.drain()
        assert raw.read_until(Finished).reason == "error"
    engine.join()


def test_a_step_that_fails_ends_the_loop_and_frees_the_socket(start_loop: StartLoop, socket_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("native code")

    engine = start_loop(ScriptedRunner(before_step=fail))
    with RawClient(socket_path) as raw:
        raw.send(Submit(sequence_id=1, prompt_ids=[10], sampling=LONG))
        assert raw.is_closed_by_engine()
    engine.join()
    assert isinstance(engine.failure, RuntimeError)
    assert not socket_path.exists()


def test_while_many_run_their_tokens_are_collected_but_the_first_and_the_last_do_not_wait(
    start_loop: StartLoop, socket_path: Path
) -> None:
    start_loop(ScriptedRunner(max_num_seqs=8, step_s=0.01), collect_s=0.5, linger_s=0.2)
    with RawClient(socket_path) as raw:
        raw.read_until(Hello)
        numbers = range(1, 7)
        sampling = Sampling(max_tokens=40, temperature=0)
        raw.send(*(Submit(sequence_id=one, prompt_ids=[100 * one], sampling=sampling) for one in numbers))
        deltas: dict[int, list[list[int]]] = {one: [] for one in numbers}
        started = time.monotonic()
        open_ = set(numbers)
        while open_:
            message = raw.read_until((Delta, Finished))
            if isinstance(message, Delta):
                deltas[message.sequence_id].append(message.token_ids)
            else:
                open_.discard(message.sequence_id)
        took_s = time.monotonic() - started
    for one, pieces in deltas.items():
        assert [token for piece in pieces for token in piece] == [100 * one + number for number in range(1, 41)]
        assert len(pieces[0]) == 1
        assert len(pieces) < 6 + took_s / 0.5  # the first token, the last ones, and a delta every half second


def test_while_few_run_every_token_is_sent_at_once(start_loop: StartLoop, client: EngineClient) -> None:
    start_loop(ScriptedRunner(step_s=0.01), collect_s=60)
    wait_for(lambda: client.status().ready)
    generation = client.submit([10], GREEDY, "alice")
    pieces = []
    while not isinstance(piece := generation.read(10), Finished):
        pieces.append(piece)
    assert [piece.ids for piece in pieces] == [[11], [12], [13], [14], [15]]
