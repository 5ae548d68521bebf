"""The log as the service sees it."""

from __future__ import annotations

import json
import logging
import threading
import time as real_time
from dataclasses import replace

import pytest

from chatsvc.audit.facts import Facts, Result
from chatsvc.audit.format import layout
from chatsvc.audit.format.record import FIRST_PREV
from chatsvc.audit.format.tree import leaf_hash
from chatsvc.audit.log import AuditLog
from chatsvc.audit.verify.log import verify_log
from chatsvc.audit.verify.verdict import CLEAN
from chatsvc.disk.append import Calls
from chatsvc.errors import AuditUnavailable
from tests.audit.logs import home_trust, last_segment, lines_of

CHAT = Facts("r1", "chat.generate", "alice", sid="s1", jti="token-1", address="10.0.0.1", method="POST", route="/chat")


def records_of(options):
    return [json.loads(line) for line in lines_of(options)]


def found(options, **wanted):
    return [each for each in records_of(options) if all(each.get(name) == value for name, value in wanted.items())]


def wait_until(happened, timeout_s=10):
    deadline = real_time.monotonic() + timeout_s
    while not happened():
        assert real_time.monotonic() < deadline, "it did not happen"
        real_time.sleep(0.01)


def test_a_begin_is_on_the_disk_when_it_returns(options, log):
    log.begin(CHAT)
    assert found(options, stage="begin", action="chat.generate", actor="alice", request_id="r1")


def test_an_end_names_its_begin_and_how_long_it_took(options, log):
    record = log.begin(CHAT)
    record.end(Result("allowed", 200, num_prompt_tokens=3, num_completion_tokens=4))
    (begin,), (end,) = found(options, stage="begin"), found(options, stage="end")
    assert end["begin"] == begin["seq"]
    assert (end["outcome"], end["status"], end["num_prompt_tokens"], end["num_completion_tokens"]) == (
        "allowed",
        200,
        3,
        4,
    )
    assert end["duration_ms"] >= 0
    assert begin["outcome"] is None


def test_an_event_is_one_record(options, log):
    log.event(Facts("r2", "auth.login", attempted_name="bob"), Result("denied", 401, "wrong password"))
    (event,) = found(options, stage="event", action="auth.login")
    assert (event["outcome"], event["reason"]) == ("denied", "wrong password")
    assert "bob" not in json.dumps(event)


def test_ending_twice_is_logged_and_writes_once(options, log, caplog):
    record = log.begin(CHAT)
    record.end(Result("allowed"))
    record.end(Result("error"))
    assert "ended twice" in caplog.text
    assert len(found(options, stage="end")) == 1


def test_each_record_names_the_leaf_hash_of_the_one_before(small_log):
    lines, prev = lines_of(small_log), FIRST_PREV
    assert prev.hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    for seq, line in enumerate(lines):
        record = json.loads(line)
        assert (record["seq"], record["prev"]) == (seq, prev.hex())
        prev = leaf_hash(line)


def test_a_closed_log_is_wholly_covered_by_checkpoints(small_log):
    verdict = verify_log(small_log.directory, home_trust(small_log))
    assert (verdict.exit_code, verdict.num_covered) == (CLEAN, verdict.num_records)
    assert found(small_log, action="audit.stop")


def test_a_checkpoint_is_made_after_so_many_records(options):
    log = AuditLog.open(replace(options, checkpoint_records=5))
    for _ in range(12):
        log.event(CHAT, Result("allowed"))
    notes = layout.checkpoints_of(last_segment(options))
    wait_until(lambda: notes.read_bytes().count(b"\n\n") >= 6)
    log.close()


def test_a_checkpoint_is_made_after_so_long(options):
    log = AuditLog.open(replace(options, checkpoint_interval_s=0.01))
    notes = layout.checkpoints_of(last_segment(options))
    before = notes.stat().st_size
    log.event(CHAT, Result("allowed"))
    wait_until(lambda: notes.stat().st_size > before)
    log.close()


def test_sixty_four_writers_share_fsyncs_and_none_is_lost(options):
    num_fsyncs = 0

    def counting(descriptor):
        nonlocal num_fsyncs
        num_fsyncs += 1
        real_time.sleep(0.002)  # a slow disk, so that they meet

    log = AuditLog.open(options, calls=Calls(fdatasync=counting))

    def write():
        for _ in range(10):
            log.begin(CHAT).end(Result("allowed"))

    threads = [threading.Thread(target=write) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert len(found(options, stage="begin")) == len(found(options, stage="end")) == 640
    assert num_fsyncs < 640
    assert verify_log(options.directory, home_trust(options)).exit_code == CLEAN


def test_the_first_denial_of_a_kind_is_a_record_and_the_rest_a_number(options):
    log = AuditLog.open(options)
    for number in range(1000):
        log.count_denial(Facts(f"r{number}", "request.denied", address="10.9.9.9", jti=f"t{number}"), "bad token")
    wait_until(lambda: found(options, action="request.denied"))
    log.close()
    first, rest = found(options, action="request.denied")
    assert "suppressed" not in first
    assert rest["suppressed"] == 999
    assert (rest["address"], rest["reason"], rest["outcome"]) == ("10.9.9.9", "bad token", "denied")


def test_sums_of_denials_are_written_when_their_window_ends(options):
    log = AuditLog.open(replace(options, denial_window_s=0.05))
    for _ in range(10):
        log.count_denial(Facts("r", "request.denied", address="10.9.9.9"), "bad token")
    wait_until(lambda: any("suppressed" in each for each in found(options, action="request.denied")))
    log.close()


def test_a_flood_from_many_addresses_writes_few_records(options):
    log = AuditLog.open(replace(options, max_denials_in_window=4))
    for number in range(500):
        log.count_denial(Facts("r", "request.denied", address=f"10.1.{number // 250}.{number % 250}"), "not listed")
    log.close()
    denials = found(options, action="request.denied")
    assert len(denials) == 5
    assert sum(each.get("suppressed", 1) for each in denials) == 500


def test_a_log_has_one_writer(options, log):
    with pytest.raises(AuditUnavailable, match="held by another process"):
        AuditLog.open(options)


def test_a_closed_log_refuses_and_closing_twice_is_allowed(options):
    log = AuditLog.open(options)
    record = log.begin(CHAT)
    log.close()
    log.close()
    with pytest.raises(AuditUnavailable):
        log.begin(CHAT)
    with pytest.raises(AuditUnavailable):
        log.event(CHAT, Result("allowed"))
    log.count_denial(CHAT, "late")
    record.end(Result("allowed"))  # lost, but never an exception: the work was done
    assert log.problem() == "it is closed"
    again = AuditLog.open(options)
    again.close()
    (end,) = found(options, stage="end")
    assert (end["outcome"], end["begin"]) == ("aborted", found(options, stage="begin")[0]["seq"])


def test_a_home_that_cannot_be_made_is_no_start(options, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AuditUnavailable):
        AuditLog.open(replace(options, directory=tmp_path / "file" / "audit"))


def test_keys_are_for_the_owner_only_and_no_secret_lies_beside_the_log(small_log):
    assert {path.stat().st_mode & 0o777 for path in small_log.keys.iterdir()} == {0o400}
    assert {path.name.partition("-")[0].partition(".")[0] for path in small_log.directory.iterdir()} == {"audit"}
    assert not list(small_log.directory.glob("*.key"))


def test_content_is_only_a_keyed_hash_by_default(options, log):
    log.event(CHAT, Result("allowed", content="what is the plan?"))
    assert b"the plan" not in b"".join(lines_of(options))
    assert found(options, action="chat.generate")[0]["content_hmac"]


def test_a_writer_that_fails_in_an_unknown_way_stops_the_log(options, caplog):
    log = AuditLog.open(options)
    log.begin(CHAT)
    log._journal.keep_up = lambda: 1 / 0
    with caplog.at_level(logging.CRITICAL), pytest.raises(AuditUnavailable):
        log.begin(CHAT)
    assert "ZeroDivisionError" in caplog.text
    assert log.problem()
    log.close()


def test_a_start_tells_the_version_and_the_configuration(options):
    for digest in ("a" * 64, "b" * 64):
        AuditLog.open(replace(options, about={"configuration": digest})).close()
    assert [each["details"]["configuration"][0] for each in found(options, action="audit.start")] == ["a", "b"]
