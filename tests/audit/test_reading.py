"""Records for people: filters and lines."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chatsvc.audit.facts import Facts, Result
from chatsvc.audit.format.record import Pseudonyms, describe
from chatsvc.audit.log import AuditLog
from chatsvc.audit.verify.show import Filter, Tail, describe_line, merged
from tests.audit.logs import last_segment, write_segments, write_some


def record(**changes):
    facts = Facts("r1", "chat.generate", "alice", address="10.0.0.1")
    about = describe(
        "end", facts, Result("allowed", 200, num_prompt_tokens=3, num_completion_tokens=4), Pseudonyms(b"k")
    )
    return about | {"ts": "2026-11-22T12:00:00.000000Z", "seq": 7, "duration_ms": 12} | changes


@pytest.mark.parametrize(
    ("chosen", "takes"),
    [
        (Filter(), True),
        (Filter(action="chat.generate"), True),
        (Filter(action="chat.*"), True),
        (Filter(action="auth.*"), False),
        (Filter(action="chat"), False),
        (Filter(actor="alice", outcome="allowed", address="10.0.0.1", request_id="r1"), True),
        (Filter(actor="bob"), False),
        (Filter(outcome="denied"), False),
        (Filter(address="10.0.0.2"), False),
        (Filter(request_id="r2"), False),
        (Filter(actor="ali*"), True),
        (Filter(actor="ali"), False),
        (Filter(actor="bo*"), False),
        (Filter(since="2026-11-22T12"), True),
        (Filter(since="2026-11-22T13"), False),
        (Filter(until="2026-11-22T12"), False),
        (Filter(until="2026-11-23"), True),
    ],
)
def test_filters(chosen, takes):
    assert chosen.takes(record()) is takes


def test_a_line_tells_who_did_what_from_where_and_how_it_ended():
    line = describe_line(record(reason="because", suppressed=9), {})
    for word in ("2026-11-22 12:00:00.000", "7", "<", "chat.generate", "allowed", "alice", "10.0.0.1", "200", "12 ms"):
        assert word in line
    assert "3+4 tokens | and 9 more | because | r1" in line
    assert describe_line({}, {}).strip()


def test_a_login_tells_which_account_it_was():
    login = record(action="auth.login", actor=None, details={"account": "8955", "started_session": "2e65"})
    assert "| account alice |" in describe_line(login, {"8955": "alice"})
    assert "| account 8955 |" in describe_line(login, {})


def test_a_tail_goes_over_segments_and_on_with_what_is_new(options, time):
    daily = write_segments(options, time, 3)
    tail = Tail(options.directory)
    seen = [each["seq"] for each in tail.read()]
    assert seen == list(range(len(seen)))
    assert list(tail.read()) == []
    write_some(daily, time, 1)
    assert next(tail.read())["seq"] == len(seen)


def test_a_line_that_is_no_record_is_passed_over_and_a_torn_one_is_awaited(small_log):
    segment = last_segment(small_log)
    data = segment.read_bytes()
    segment.write_bytes(data.replace(b'"alice"', b'"alice', 1)[:-4])
    tail = Tail(small_log.directory)
    assert len(list(tail.read())) == 7
    with segment.open("ab") as file:
        file.write(data[-4:])
    assert len(list(tail.read())) == 1


def test_logs_are_merged_by_time(options, time):
    write_some(options, time, 1)
    aside = replace(options, directory=options.directory / "commands")
    write_some(aside, time, 1)
    AuditLog.open(options, clock=time.clock()).close()
    merged_records = list(merged(Tail(each.directory).read() for each in (options, aside)))
    times = [each["ts"] for each in merged_records]
    assert times == sorted(times)
    assert len({each["log_id"] for each in merged_records}) == 2


def test_the_last_records_are_found_without_reading_all_segments(options, time):
    daily = write_segments(options, time, 4)
    everything = [each["seq"] for each in Tail(options.directory).read()]
    for count in (1, 3, 9, 1000):
        tail = Tail(options.directory)
        assert [each["seq"] for each in tail.last(Filter(), count)] == everything[-count:]
        assert list(tail.read()) == []
    begins = [each["stage"] for each in tail.last(Filter(action="chat.generate"), 5)]
    assert begins == ["end", "begin", "end", "begin", "end"]
    write_some(daily, time, 0)
    assert next(tail.read())["seq"] == len(everything)
    assert Tail(options.directory / "none").last(Filter(), 3) == []


def test_what_is_json_but_no_object_is_passed_over(small_log):
    segment = last_segment(small_log)
    segment.write_bytes(b"[]\n" + segment.read_bytes() + b"[" * 100_000 + b"\n")
    assert len(list(Tail(small_log.directory).read())) == 9
