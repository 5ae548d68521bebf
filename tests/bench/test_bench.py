"""The benchmark's own parts: the event reader, the generator over a real socket, the sums and the report."""

from __future__ import annotations

import ast
import http.server
import itertools
import json
import math
import random
import socket
import statistics
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.disk import Round, judge, trimmed_mean
from bench.disk import table as disk_table
from bench.everything import PROGRAMS
from bench.load import Sample, Streams, Target, asking, chat
from bench.measure import summarise
from bench.page import embed
from bench.program import parser
from bench.report import Run, kept, markdown, merged, write
from bench.scenarios import SCENARIOS, Scenario
from bench.shape import render
from bench.sse import Event, EventBuffer

STREAM = (
    ": keep-alive\n\n"
    'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
    'data: {"choices":[{"delta":{"content":"é"}}]}\r\n\r\n'
    'data: {"choices":[{"delta":{"content":"b"}}]}\n\n'
    'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\n'
    "data: [DONE]\n\n"
).encode()


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_events_are_the_same_however_the_bytes_are_cut(cuts):
    whole = list(EventBuffer().feed(STREAM))
    buffer = EventBuffer()
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[start:end] for start, end in itertools.pairwise(edges)]
    assert [event for piece in pieces for event in buffer.feed(piece)] == whole
    assert len(whole) == 5


def test_events_have_names_and_data_of_several_lines():
    events = list(EventBuffer().feed(b"event: done\ndata: a\ndata:b\nid: 3\n\ndata: lost at the end"))
    assert events == [Event("done", "a\nb")]


class Server(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind = body["messages"][0]["content"]
        if kind == "refuse":
            self.send_response(503)
            self.send_header("Retry-After", "7")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        cut = STREAM if kind == "whole" else STREAM.replace(b"data: [DONE]\n\n", b"")
        for piece in (cut[:100], cut[100:]):
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_):
        pass


@pytest.fixture
def target():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Target("test", "127.0.0.1", server.server_address[1], headers=lambda: {"X-Test": "1"})
    server.shutdown()
    thread.join()
    server.server_close()


def test_streams_are_read_to_the_end_and_counted(target):
    streams = Streams(target, 4)
    samples = streams.burst([chat([{"role": "user", "content": "whole"}], 2) for _ in range(4)])
    streams.close()
    for sample in samples:
        assert (sample.status, sample.text, sample.num_prompt, sample.num_completion) == (200, "éb", 5, 2)
        assert not sample.error
        assert sample.started < sample.first <= sample.ended


def test_a_refusal_and_a_cut_stream_are_told_apart_from_answers(target):
    streams = Streams(target, 2)
    refused, cut = streams.burst([chat([{"role": "user", "content": kind}], 2) for kind in ("refuse", "cut")])
    streams.close()
    assert (refused.status, refused.retry_after_s) == (503, 7)
    assert cut.error == "the stream ended without [DONE]"


def test_a_server_that_goes_away_is_a_sample_with_an_error():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        streams = Streams(Target("gone", "127.0.0.1", listener.getsockname()[1]), 1)
        accepted, _ = listener.accept()
        accepted.close()
    (sample,) = streams.burst([chat([{"role": "user", "content": "whole"}], 2)])
    streams.close()
    assert sample.status == 0
    assert sample.error


def test_a_table_is_put_between_its_marks_and_nowhere_else(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- bench:x -->\nold\n<!-- /bench:x -->\nafter\n")
    embed("x", "| new |", path)
    assert path.read_text() == "before\n<!-- bench:x -->\n\n| new |\n\n<!-- /bench:x -->\nafter\n"
    with pytest.raises(ValueError, match="no place for y"):
        embed("y", "", path)


def test_prompts_have_the_length_that_was_asked_for_and_share_nothing():
    for scenario in SCENARIOS:
        first = next(scenario.turns(3, seed=5))
        texts = [body["messages"][0]["content"] for body in first]
        assert len(set(texts)) == 3
        for body in first:
            one_token_each = render(body["messages"]).replace("<|im_start|>", "S").replace("<|im_end|>", "E")
            assert len(one_token_each) == scenario.num_prompt


def test_a_conversation_carries_what_was_said():
    turns = list(Scenario("conversation", 64, 32, (2,), num_turns=3).turns(2, seed=1))
    assert [len(turn[0]["messages"]) for turn in turns] == [1, 3, 5]


HEAD = {
    "measured_at": "now", "commit": "c", "command": "x", "processor": "p", "num_cores": 2, "memory_gib": 1,
    "features": [], "kernel": "k", "versions": {"python": "3"}, "load_before": 0.0,
}  # fmt: skip


def samples_of(speed: float) -> list[list[Sample]]:
    return [[Sample(1.0, 1.0 + 128 / speed, 1.1, 200, 64, 128)]]


def test_the_report_has_ratios_and_marks_what_is_missed(tmp_path):
    scenario = Scenario("short", 64, 128, (1,))
    speeds = {"chatsvc": 40, "engine in process": 41, "llama.cpp-Q8_0": 25, "llama.cpp-Q4_0": 50}
    measurements = [summarise(scenario, name, 0, samples_of(speed), {}) for name, speed in speeds.items()]
    text = markdown([Run(HEAD, measurements)])
    assert "**1.60** | at least 1.45 | 0.80 (missed) | at least 1.0" in text
    assert "| 1 | 97.6% |" in text


def test_a_run_replaces_only_the_scenarios_that_it_measured(tmp_path):
    def run_of(command: str, *names: str) -> Run:
        scenarios = [Scenario(name, 64, 128, (1,)) for name in names]
        return Run(HEAD | {"command": command}, [summarise(one, "x", 0, samples_of(40), {}) for one in scenarios])

    assert kept(tmp_path) == []
    write(tmp_path, merged([], run_of("all", "short", "long", "conversation")))
    write(tmp_path, merged(kept(tmp_path), run_of("again", "long")))
    runs = kept(tmp_path)
    assert [(run.machine["command"], [one.scenario for one in run.measurements]) for run in runs] == [
        ("all", ["short", "conversation"]),
        ("again", ["long"]),
    ]
    text = markdown(runs)
    assert text.count("`all`") == text.count("`again`") == 1
    assert all((tmp_path / f"{name}.svg").stat().st_size > 1000 for name in ("short", "long", "conversation"))


def test_answers_of_another_length_are_a_problem():
    scenario = Scenario("short", 64, 100, (1,))
    assert summarise(scenario, "x", 0, samples_of(40), {}).problems == ["answers of [128] tokens, 100 asked for"]


def test_clients_ask_again_and_again_until_the_block_ends():
    asked = []
    with asking(lambda: asked.append(threading.get_ident()), 3):
        while len(asked) < 100:
            pass
    count = len(asked)
    assert threading.get_ident() not in asked
    assert len(asked) == count


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_says_how_it_is_called_and_can_leave_the_docs_alone(name):
    path = Path(*name.split("."))
    text = (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    about = ast.get_docstring(ast.parse(text))
    assert parser(about).format_usage().startswith(f"usage: python -m {name} [-h] [--not-kept] [--cache CACHE]")
    assert "program.parser(__doc__" in text
    assert "arguments.not_kept" in text


def test_a_trimmed_mean_does_not_mind_a_few_rounds_that_went_wrong():
    usual = [0.1 + 0.01 * number for number in range(8)]
    mean, error = trimmed_mean(usual)
    assert mean == pytest.approx(statistics.fmean(usual))
    # By hand: two of eight are drawn in at either end, so 0.12 three times, 0.13, 0.14, 0.15 three times; four are left.
    drawn_in = [0.12] * 3 + [0.13, 0.14] + [0.15] * 3
    assert error == pytest.approx(statistics.stdev(drawn_in) / (0.5 * math.sqrt(8)))
    assert trimmed_mean([*usual[:-2], 70.0, 90.0]) == pytest.approx((mean, error))
    assert trimmed_mean([0.3]) == (0.3, math.inf)


def test_its_standard_error_is_as_large_as_its_means_really_differ():
    whims = random.Random(7)
    found = [trimmed_mean([whims.gauss(0, 1) for _ in range(24)]) for _ in range(2000)]
    claimed = math.sqrt(statistics.fmean(error**2 for _, error in found))
    assert claimed == pytest.approx(statistics.pstdev(mean for mean, _ in found), rel=0.1)


@pytest.mark.parametrize(
    ("lost", "error", "verdict"),
    [
        (0.010, 0.004, "under"), (0.030, 0.004, "missed"), (0.013, 0.004, "undecided"),
        (0.027, 0.004, "undecided"), (-0.5, math.inf, "undecided"),
    ],
)  # fmt: skip
def test_a_goal_within_two_standard_errors_is_neither_reached_nor_missed(lost, error, verdict):
    assert judge(lost, error) == verdict


def test_the_slow_disk_is_judged_by_the_rounds_own_ratios():
    scenario = Scenario("short", 64, 128, (1,))
    plain, slow = (summarise(scenario, "x", 0, samples_of(speed), {}) for speed in (100, 99))
    text = disk_table([Round(plain, slow)] * 8, [Round(plain, slow)], 10)
    assert "| throughput lost to the slow disk | | +1.0% ± 0.0% |" in text
    assert "| goal: under 2% | | under |" in text
