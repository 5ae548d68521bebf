"""One file that proves a stretch of time on a machine that has nothing else."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from chatsvc.audit import keys
from chatsvc.audit.format import layout
from chatsvc.audit.format.notes import parse_vkey
from chatsvc.audit.format.ratchet import parse_seal_key
from chatsvc.audit.format.record import encode
from chatsvc.audit.format.rules import Tampered
from chatsvc.audit.verify.export import Span, export, parse_moment
from chatsvc.audit.verify.export_check import is_export, verify_export
from chatsvc.audit.verify.log import Trust
from chatsvc.audit.verify.verdict import CLEAN, TAMPERED, UNKNOWN_KEY
from chatsvc.errors import OperatorError
from tests.audit.logs import DAY_US, NOON_US, home_trust, last_segment, write_segments, write_some

ALWAYS = Span(0, NOON_US * 2, NOON_US)


def exported(options, tmp_path, span=ALWAYS):
    path = tmp_path / "export.jsonl"
    path.write_bytes(b"".join(export(options.directory, options.keys, span)))
    return path


def records_in(path):
    return [record for line in path.read_bytes().splitlines() if "seq" in (record := json.loads(line))]


def code_of(path, trust=None) -> int:
    return verify_export(path, trust or home_trust(path)).exit_code


def test_an_export_of_everything_verifies_alone(small_log, tmp_path):
    path = exported(small_log, tmp_path)
    assert is_export(path)
    assert not is_export(last_segment(small_log))
    verdict = verify_export(path, home_trust(small_log))
    assert (verdict.exit_code, verdict.num_records) == (CLEAN, 9)
    own = parse_vkey((small_log.directory / layout.VKEY).read_text())
    assert verdict.vouched == (f"{own.name} {own.fingerprint}",)


def test_an_export_signed_by_an_untrusted_key_is_intact_but_exit_code_6(small_log, tmp_path):
    path = exported(small_log, tmp_path)
    own = parse_vkey((small_log.directory / layout.VKEY).read_text())
    for trust in (Trust(), Trust(home=frozenset([bytes(32)]))):
        verdict = verify_export(path, trust)
        assert (verdict.exit_code, verdict.num_records) == (UNKNOWN_KEY, 9)
        assert verdict.unvouched == (f"{own.name} {own.fingerprint}",)
        assert own.fingerprint in verdict.message


def test_every_stretch_of_a_long_log_verifies_and_holds_just_its_records(options, time, tmp_path):
    busy = replace(options, segment_age_s=0.004, checkpoint_records=3)
    write_some(busy, time, 20)
    assert len(layout.segments(options.directory)) > 3
    whole = records_in(exported(options, tmp_path))
    times = [parse_moment(each["ts"]) for each in whole]
    for start in range(0, len(whole), 5):
        for end in range(start, len(whole), 7):
            path = exported(options, tmp_path, Span(times[start], times[end], NOON_US))
            assert [each["seq"] for each in records_in(path)] == [
                each["seq"] for each, at in zip(whole, times, strict=True) if times[start] <= at < times[end]
            ]
            assert code_of(path) == CLEAN


def test_bit_flips_all_over_an_export_are_found(options, time, tmp_path):
    write_some(options, time, 3)
    path = exported(options, tmp_path, Span(NOON_US + 500, NOON_US + 2500, NOON_US))
    data = path.read_bytes()
    for place in range(0, len(data), 3):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        assert code_of(path) in (TAMPERED, UNKNOWN_KEY), place


def test_a_cut_off_doubled_or_reordered_export_is_found(small_log, tmp_path):
    path = exported(small_log, tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    head, log, *records, end, signature = lines
    for change in (
        [],
        [head],
        lines[:-1],
        lines[:-2],
        lines[1:],
        lines + lines,
        [*lines, signature],
        [*lines[:4], *lines[5:]],
        [head, *records, end, signature],
        [head, log, *records, log, end, signature],
        [head, log, *records, signature],
        [head, end, signature],
        [head, signature],
    ):
        path.write_bytes(b"".join(change))
        assert code_of(path) == TAMPERED


def test_an_export_of_another_key_than_the_pinned_one_is_of_an_unknown_key(small_log, tmp_path):
    path = exported(small_log, tmp_path)
    own = parse_vkey((small_log.directory / layout.VKEY).read_text())
    verdict = verify_export(path, Trust(keys=(own,)))
    assert verdict.exit_code == CLEAN
    assert "compare" not in verdict.message
    assert code_of(path, Trust(keys=(replace(own, public=bytes(32)),))) == UNKNOWN_KEY


def test_seals_are_checked_in_an_export_too(options, time, tmp_path):
    write_segments(options, time, 3)
    (seal_path,) = keys.initial_seals(options.keys)
    seal_key = parse_seal_key(seal_path.read_text())
    path = exported(options, tmp_path, Span(NOON_US + DAY_US // 2, NOON_US + 5 * DAY_US, NOON_US))
    assert code_of(path, home_trust(path, seal_keys=(seal_key,))) == CLEAN
    assert code_of(path, home_trust(path, seal_keys=(replace(seal_key, key=bytes(32)),))) == TAMPERED


def test_all_logs_of_a_home_are_in_it(options, time, tmp_path):
    write_some(options, time, 1)
    write_some(replace(options, directory=options.directory / "commands"), time, 1)
    path = exported(options, tmp_path)
    assert len({each["log_id"] for each in records_in(path)}) == 2
    assert code_of(path) == CLEAN


def test_an_export_of_no_records_is_one_too(small_log, tmp_path):
    for span in (Span(0, 1, NOON_US), Span(NOON_US * 2, NOON_US * 2 + 1, NOON_US)):
        path = exported(small_log, tmp_path, span)
        assert records_in(path) == []
        assert code_of(path) == CLEAN


def test_records_behind_the_last_checkpoint_get_one_from_the_exporter(small_log, tmp_path):
    notes = layout.checkpoints_of(last_segment(small_log))
    notes.write_bytes(b"")
    path = exported(small_log, tmp_path)
    assert code_of(path) == CLEAN


@pytest.mark.parametrize("place", [2, 5])
def test_a_checkpoint_of_something_else_inside_is_refused(small_log, tmp_path, place):
    path = exported(small_log, tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    (checkpoint,) = [line for line in lines if line.startswith(b'{"checkpoint"') and b"\\n9\\n" in line]
    path.write_bytes(b"".join([*lines[:place], checkpoint, *lines[place:]]))
    assert code_of(path) == TAMPERED


def test_a_proof_that_does_not_lead_to_the_checkpoint_is_refused(options, time, tmp_path):
    write_some(options, time, 3)
    path = exported(options, tmp_path, Span(NOON_US + 500, NOON_US + 2500, NOON_US))
    lines = path.read_bytes().splitlines(keepends=True)
    end = json.loads(lines[-2])["end"]
    for change in ({"right": []}, {"right": ["00" * 32 for _ in end["right"]]}, {"size": 5}):
        path.write_bytes(b"".join([*lines[:-2], encode({"end": end | change}) + b"\n", lines[-1]]))
        assert code_of(path) == TAMPERED


def test_a_damaged_log_gives_no_export(small_log):
    segment = last_segment(small_log)
    segment.write_bytes(segment.read_bytes().replace(b"alice", b"alicf"))
    with pytest.raises(Tampered):
        b"".join(export(small_log.directory, small_log.keys, ALWAYS))


def test_no_log_gives_no_export(options):
    with pytest.raises(OperatorError, match="no audit log"):
        export(options.directory, options.keys, ALWAYS)


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"vkeys": ["no key"]},
        {"vkeys": None},
    ],
)
def test_a_head_that_is_not_of_this_version_is_refused(small_log, tmp_path, change):
    path = exported(small_log, tmp_path)
    first, _, rest = path.read_bytes().partition(b"\n")
    path.write_bytes(encode({"export": json.loads(first)["export"] | change}) + b"\n" + rest)
    assert code_of(path) == TAMPERED


def test_moments_are_days_or_times():
    assert parse_moment("2026-11-22") == NOON_US - DAY_US // 2
    assert parse_moment("2026-11-22T12:00") == parse_moment("2026-11-22T13:00:00+01:00") == NOON_US
    with pytest.raises(ValueError, match="isoformat"):
        parse_moment("yesterday")


def test_a_line_that_is_no_record_is_no_export(small_log, tmp_path):
    with last_segment(small_log).open("ab") as file:
        file.write(b"no record\n")
    with pytest.raises(Tampered, match="record 9"):
        exported(small_log, tmp_path)
