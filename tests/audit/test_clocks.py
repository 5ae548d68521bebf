"""A wall clock that is set: on record and alarmed, and nothing that orders the log goes by it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from chatsvc.audit.facts import Result
from chatsvc.audit.format.ratchet import parse_seal_key
from chatsvc.audit.format.record import format_time, parse_time
from chatsvc.audit.keys import initial_seals
from chatsvc.audit.log import AuditLog
from chatsvc.audit.options import AuditOptions
from chatsvc.audit.verify.export import Span, export
from chatsvc.audit.verify.export_check import verify_export
from chatsvc.audit.verify.log import verify_log
from chatsvc.audit.verify.prune import prunable
from chatsvc.audit.verify.verdict import CLEAN, TAMPERED
from chatsvc.audit.write.timekeeping import Clock, system_clock
from tests.audit.logs import DAY_US, Time, home_trust, last_segment, lines_of, write_segments, write_some
from tests.audit.test_independent_verifier import independent_code
from tests.audit.test_log import CHAT, found, wait_until
from tests.audit.test_verify import forged

HOUR_US = 3_600_000_000
YEAR_US = 365 * DAY_US
STEPS = [-HOUR_US, HOUR_US, -4 * YEAR_US, 4 * YEAR_US, -61_000_000, 61_000_000]


def is_clean(options: AuditOptions) -> bool:
    seals = tuple(parse_seal_key(path.read_text()) for path in initial_seals(options.keys))
    verdict = verify_log(options.directory, home_trust(options, seal_keys=seals))
    assert verdict.exit_code == CLEAN, verdict.message
    assert independent_code(options) == 0
    return True


def records_of(options: AuditOptions) -> list[dict]:
    return [json.loads(line) for line in lines_of(options)]


@pytest.mark.parametrize("step_us", STEPS)
def test_a_step_while_the_log_is_open_is_a_record_and_an_alarm(
    options: AuditOptions, time: Time, step_us: int, caplog: pytest.LogCaptureFixture
) -> None:
    log = AuditLog.open(replace(options, checkpoint_records=1), clock=time.clock())
    begun = log.begin(CHAT)
    time.wall_us += step_us
    wait_until(lambda: any("the wall clock was set" in each for each in log.alarms()))
    wait_until(lambda: "the wall clock was set" in caplog.text)
    begun.end(Result("allowed"))
    log.event(CHAT, Result("allowed"))
    now_us = time.wall_us
    log.close()
    (told,) = found(options, action="audit.clock")
    assert abs(told["clock_step_us"] - step_us) < 1_000_000
    assert told["outcome"] == "error"
    assert ("back" in told["reason"]) == (step_us < 0)
    assert parse_time(told["details"]["after"]) - parse_time(told["details"]["before"]) == told["clock_step_us"]
    last = records_of(options)[-1]
    assert abs(parse_time(last["ts"]) - now_us) < 1_000_000  # wall time again, not the time of before the step
    assert [each["seq"] for each in records_of(options)] == list(range(len(records_of(options))))
    assert [each["mono"] for each in records_of(options)] == sorted(each["mono"] for each in records_of(options))
    assert is_clean(options)


def test_less_than_a_minute_is_no_step_but_many_of_them_are_one(options: AuditOptions, time: Time) -> None:
    log = AuditLog.open(options, clock=time.clock())
    time.wall_us -= 50_000_000
    log.event(CHAT, Result("allowed"))
    assert not found(options, action="audit.clock")
    time.wall_us -= 50_000_000
    wait_until(lambda: found(options, action="audit.clock"))
    log.close()
    assert is_clean(options)


def test_an_alarm_ends_after_an_hour(options: AuditOptions, time: Time) -> None:
    log = AuditLog.open(options, clock=time.clock())
    time.wall_us += HOUR_US
    wait_until(log.alarms)
    time.pass_us(HOUR_US + 1_000_000)
    assert log.alarms() == []
    log.close()


@pytest.mark.parametrize("boot_id", ["boot-1", "boot-2"])
@pytest.mark.parametrize("step_us", STEPS)
def test_a_step_while_nothing_ran_is_told_at_the_next_start(
    options: AuditOptions, time: Time, boot_id: str, step_us: int
) -> None:
    write_some(options, time)
    time.pass_us(10_000_000)
    time.wall_us += step_us
    clock = Clock(time.clock().wall_us, time.clock().mono_us, boot_id)
    if boot_id != "boot-1":
        time.mono_us = 0
    AuditLog.open(options, clock=clock).close()
    told = found(options, action="audit.clock")
    if boot_id == "boot-1":
        assert [abs(each["clock_step_us"] - step_us) < 1_000_000 for each in told] == [True]
    elif step_us < -61_000_000:  # since another start of the machine only going back can be told
        assert [abs(each["clock_step_us"] - step_us - 10_000_000) < 1_000_000 for each in told] == [True]
    else:
        assert not told
    assert abs(parse_time(records_of(options)[-1]["ts"]) - time.wall_us) < 60_000_000
    assert is_clean(options)


def test_sealing_epochs_go_on_whatever_the_clock_says(options: AuditOptions, time: Time) -> None:
    """A clock set back makes no old key current, and one set far ahead wears no keys out."""
    short = replace(options, epoch_s=60, segment_age_s=90)
    for step_us in (-HOUR_US, 4 * YEAR_US, -4 * YEAR_US, HOUR_US):
        write_some(short, time)
        time.pass_us(61_000_000)
        time.wall_us += step_us
    write_some(short, time)
    records = records_of(short)
    epochs = [each["epoch"] for each in records]
    assert epochs == sorted(epochs)
    assert 4 <= epochs[-1] <= 5
    assert len([each for each in records if each["action"] == "audit.clock"]) == 4
    assert is_clean(short)


@pytest.mark.parametrize(
    "change",
    [
        {"clock_step_us": None},
        {"clock_step_us": -59_000_000},
        {"clock_step_us": True},
        {"clock_step_us": "x"},
        {"action": "chat.generate"},
    ],
)
def test_a_step_must_be_told_as_one(options: AuditOptions, time: Time, change: dict) -> None:
    write_some(options, time)
    time.wall_us -= HOUR_US
    write_some(options, time)
    (told,) = found(options, action="audit.clock")
    forged(options, lambda records: [{**each, **change} if each["seq"] == told["seq"] else each for each in records])
    assert verify_log(options.directory, home_trust(options)).exit_code == TAMPERED
    assert independent_code(options) == 1


def test_an_old_time_without_a_step_is_still_tampered(options: AuditOptions, time: Time) -> None:
    write_some(options, time)
    earlier = format_time(time.wall_us - HOUR_US)
    forged(options, lambda records: [{**each, "ts": earlier} if each["seq"] == 4 else each for each in records])
    assert verify_log(options.directory, home_trust(options)).exit_code == TAMPERED


def test_an_export_holds_what_was_dated_in_its_span_on_both_sides_of_a_step(
    options: AuditOptions, time: Time, tmp_path
) -> None:
    daily = write_segments(options, time, 3)
    ahead = time.wall_us + 2 * YEAR_US
    time.wall_us = ahead
    write_some(daily, time, action="tool.ahead")
    time.wall_us -= 2 * YEAR_US
    write_some(daily, time, action="tool.right")
    for name, start in (("tool.ahead", ahead), ("tool.right", time.wall_us - HOUR_US)):
        path = tmp_path / name
        path.write_bytes(b"".join(export(options.directory, options.keys, Span(start, start + 2 * HOUR_US, start))))
        assert verify_export(path, home_trust(options)).exit_code == CLEAN
        assert path.read_bytes().count(f'"action":"{name}"'.encode()) == 6
    nothing = Span(ahead + YEAR_US, ahead + 2 * YEAR_US, ahead)
    assert b'{"log"' not in b"".join(export(options.directory, options.keys, nothing))


def test_a_clock_that_was_years_behind_makes_nothing_old_enough_to_be_pruned(options: AuditOptions, time: Time) -> None:
    daily = write_segments(options, time, 2)
    right = time.wall_us
    time.wall_us -= 4 * YEAR_US
    for _ in range(2):
        write_some(daily, time)
        time.pass_us(DAY_US)
    time.wall_us += 4 * YEAR_US
    write_some(daily, time)
    assert last_segment(options).exists()
    assert prunable(options.directory, 180, time.wall_us) == []
    assert len(prunable(options.directory, 180, right + 190 * DAY_US)) >= 3


def test_the_machines_own_clock_goes_on_while_it_sleeps() -> None:
    clock = system_clock()
    first, second = clock.mono_us(), clock.mono_us()
    assert 0 < first <= second
    assert abs(clock.wall_us() - system_clock().wall_us()) < 60_000_000
