"""Whatever is done to a log is found, with the right exit code and the record named."""

from __future__ import annotations

import io
import json
import os
import shutil
import time as real_time
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chatsvc.audit import keys
from chatsvc.audit.format import layout
from chatsvc.audit.format.notes import Checkpoint, Signer, format_checkpoint, format_vkey, parse_vkey
from chatsvc.audit.format.ratchet import parse_seal_key
from chatsvc.audit.format.record import FIRST_PREV, compute_mac, encode, seal
from chatsvc.audit.format.replay import Replay, read_notes
from chatsvc.audit.format.rules import RuleChecker, Tampered, position_at
from chatsvc.audit.format.tree import leaf_hash, root_of
from chatsvc.audit.verify import log as verify
from chatsvc.audit.verify.log import Trust, verify_log, verify_segment, verify_tree
from chatsvc.audit.verify.verdict import CLEAN, FEWER_RECORDS, TAMPERED, TORN_TAIL, UNKNOWN_KEY, Verdict, worst
from chatsvc.audit.witness.seen import Seen
from tests.audit.logs import home_trust, last_segment, write_segments, write_some


@pytest.fixture(autouse=True)
def _no_waiting_for_a_writer(monkeypatch):
    monkeypatch.setattr(verify, "_SETTLE_S", 0)


def code_of(options, trust=None) -> int:
    return verify_log(options.directory, trust or home_trust(options)).exit_code


def seal_keys(options):
    return tuple(parse_seal_key(path.read_text()) for path in keys.initial_seals(options.keys))


def rewritten(options, change) -> Verdict:
    """The verdict after ``change(lines) -> lines``."""
    segment = last_segment(options)
    segment.write_bytes(b"".join(line + b"\n" for line in change(segment.read_bytes().splitlines())))
    return verify_log(options.directory, home_trust(options))


def forged(options, change, signer=None, mac_key=None) -> None:
    """Rewrite the last segment with everything that follows made right again: chain, checkpoints, keys."""
    segment = last_segment(options)
    prev, lines = FIRST_PREV, []
    for seq, record in enumerate(change([json.loads(line) for line in segment.read_bytes().splitlines()])):
        forgery = {**record, "seq": seq, "prev": prev.hex()}
        if mac_key is not None:
            del forgery["mac"]
            lines.append(seal(forgery, mac_key))
        else:
            lines.append(encode(forgery))
        prev = leaf_hash(lines[-1])
    segment.write_bytes(b"".join(line + b"\n" for line in lines))
    name = parse_vkey((options.directory / layout.VKEY).read_text()).name
    signer = signer or Signer(name, keys.signing_key(options.keys, create=False))
    head = Checkpoint(name, len(lines), root_of([leaf_hash(line) for line in lines]))
    layout.checkpoints_of(segment).write_text(signer.sign(format_checkpoint(head)) + "\n")


def copied(options, tmp_path, name="copy"):
    copy = replace(options, directory=tmp_path / name)
    shutil.copytree(options.directory, copy.directory)
    return copy


def test_every_single_bit_flip_of_a_whole_segment_is_found(small_log):
    """All bits; each from the position in front of its line on, so that it takes seconds."""
    segment = last_segment(small_log)
    data, keys_here = segment.read_bytes(), home_trust(small_log).keys_of(small_log.directory)
    due = read_notes(segment, keys_here).checkpoints
    walk = RuleChecker(position_at(data.partition(b"\n")[0]))
    start, missed = 0, []
    for seq, line in enumerate(data.splitlines(keepends=True)):
        for bit in range(len(line) * 8):
            changed = bytearray(data[start:])
            changed[bit // 8] ^= 1 << bit % 8
            if not is_found(walk.position.copy(), [each for each in due if each.size > seq], changed, start):
                missed.append((seq, bit))
        walk.step(line[:-1], first=seq == 0)
        start += len(line)
    assert (missed, start) == ([], len(data))


def is_found(position, due, rest, start) -> bool:
    replay = Replay(RuleChecker(position))
    replay.expect(due)
    try:
        for _ in replay.lines(io.BytesIO(rest), start):
            pass
    except Tampered:
        return True
    return bool(replay.due or replay.torn)


def test_bit_flips_all_over_a_segment_are_found_with_their_record(options, time):
    """Through the whole verifier."""
    write_some(options, time, 1)
    segment = last_segment(options)
    data = segment.read_bytes()
    num_lines, missed, unnamed = data.count(b"\n"), [], []
    for place in range(0, len(data), 3):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        segment.write_bytes(changed)
        verdict = verify_log(options.directory, home_trust(options))
        seq = data.count(b"\n", 0, place)
        if verdict.exit_code != TAMPERED:
            missed.append(place)
        elif verdict.seq not in (seq, seq + 1) or verdict.seq >= num_lines:
            unnamed.append((place, seq, verdict.seq))
    assert (missed, unnamed) == ([], [])


def test_a_bit_flip_in_every_byte_of_the_checkpoints_is_found(small_log):
    path = layout.checkpoints_of(last_segment(small_log))
    data = path.read_bytes()
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        verdict = verify_log(small_log.directory, home_trust(small_log))
        if (
            verdict.exit_code == CLEAN
        ):  # what is gone is only the last note: then nothing is claimed about the last records
            assert verdict.num_covered < verdict.num_records
        else:
            assert verdict.exit_code in (TAMPERED, UNKNOWN_KEY)


def test_the_changed_record_is_named(small_log):
    verdict = rewritten(
        small_log,
        lambda lines: [line.replace(b'"alice"', b'"alicf"') if at == 4 else line for at, line in enumerate(lines)],
    )
    assert (verdict.exit_code, verdict.seq) == (TAMPERED, 4)
    assert "record 4" in verdict.message


def test_the_last_record_is_named_too(small_log):
    verdict = rewritten(small_log, lambda lines: [*lines[:-1], lines[-1].replace(b"boot-1", b"boot-2")])
    assert (verdict.exit_code, verdict.seq) == (TAMPERED, 8)


@pytest.mark.parametrize("which", ["segment", "checkpoints", "vkey"])
def test_a_pipe_in_place_of_a_file_is_found_and_not_waited_for(small_log, which):
    segment = last_segment(small_log)
    path = {
        "segment": segment,
        "checkpoints": layout.checkpoints_of(segment),
        "vkey": small_log.directory / layout.VKEY,
    }[which]
    path.unlink()
    os.mkfifo(path)
    verdict = verify_log(small_log.directory, home_trust(small_log))
    assert verdict.exit_code == TAMPERED
    assert f"{path.name} is not a regular file" in verdict.message


@pytest.mark.parametrize("at", range(9))
def test_a_deleted_record_is_found(small_log, at):
    verdict = rewritten(small_log, lambda lines: lines[:at] + lines[at + 1 :])
    if at == 8:
        assert (verdict.exit_code, verdict.seq) == (FEWER_RECORDS, 8)
    else:
        assert (verdict.exit_code, verdict.seq) == (TAMPERED, at)


@pytest.mark.parametrize("at", range(8))
def test_swapped_records_are_found(small_log, at):
    verdict = rewritten(small_log, lambda lines: [*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]])
    assert (verdict.exit_code, verdict.seq) == (TAMPERED, at)


@pytest.mark.parametrize("at", range(9))
def test_a_duplicated_record_is_found(small_log, at):
    verdict = rewritten(small_log, lambda lines: lines[: at + 1] + lines[at:])
    assert (verdict.exit_code, verdict.seq) == (TAMPERED, at + 1)


def test_every_truncation_is_found(small_log):
    segment = last_segment(small_log)
    data = segment.read_bytes()
    for length in range(0, len(data), 41):
        segment.write_bytes(data[:length])
        expected = FEWER_RECORDS if data[:length].endswith(b"\n") else TAMPERED
        assert code_of(small_log) == expected, length


def test_a_tail_torn_behind_the_last_checkpoint_is_told_apart(small_log):
    with last_segment(small_log).open("ab") as file:
        file.write(b'{"action":"chat.gen')
    verdict = verify_log(small_log.directory, home_trust(small_log))
    assert (verdict.exit_code, verdict.seq) == (TORN_TAIL, 9)


def test_records_behind_the_last_checkpoint_are_said_to_be_held_by_the_chain_only(small_log):
    path = layout.checkpoints_of(last_segment(small_log))
    path.write_text(
        path.read_text().partition("\n\n")[0]
        + "\n\n"
        + path.read_text().partition("\n\n")[2].partition("\n\n")[0]
        + "\n\n"
    )
    verdict = verify_log(small_log.directory, home_trust(small_log))
    assert verdict.exit_code == CLEAN
    assert "the last 7 are protected by the hash chain" in verdict.message


def test_a_log_without_any_checkpoint_is_not_clean(small_log):
    layout.checkpoints_of(last_segment(small_log)).unlink()
    assert code_of(small_log) == TAMPERED


def test_a_log_without_its_public_key_is_of_an_unknown_key(small_log):
    (small_log.directory / layout.VKEY).unlink()
    assert code_of(small_log) == UNKNOWN_KEY


def test_a_log_whose_segments_are_gone_has_fewer_records(small_log):
    last_segment(small_log).unlink()
    assert code_of(small_log) == FEWER_RECORDS


def test_a_log_signed_by_another_key_than_the_pinned_one_is_of_an_unknown_key(small_log):
    name = parse_vkey((small_log.directory / layout.VKEY).read_text()).name
    stranger = Signer(name, Ed25519PrivateKey.generate())
    pinned = (parse_vkey((small_log.directory / layout.VKEY).read_text()),)
    assert code_of(small_log, Trust(keys=pinned)) == CLEAN
    forged(small_log, lambda records: [{**each, "actor": "mallory"} for each in records], signer=stranger)
    (small_log.directory / layout.VKEY).write_text(format_vkey(stranger.verifier_key))
    for trust in (home_trust(small_log), Trust(keys=pinned), Trust()):
        verdict = verify_log(small_log.directory, trust)
        assert verdict.exit_code == TAMPERED
        assert verdict.unvouched == (f"{name} {stranger.verifier_key.fingerprint}",)
        assert stranger.verifier_key.fingerprint in verdict.message
    (small_log.directory / layout.VKEY).write_text(format_vkey(pinned[0]))  # the notes are still signed by the stranger
    assert code_of(small_log, Trust(keys=pinned)) == code_of(small_log) == UNKNOWN_KEY


def test_a_rewritten_log_with_the_stolen_signing_key_breaks_its_seal(small_log):
    trust = home_trust(small_log, seal_keys=seal_keys(small_log))
    assert code_of(small_log, trust) == CLEAN
    forged(small_log, lambda records: [{**each, "actor": "mallory"} if each["actor"] else each for each in records])
    assert code_of(small_log) == CLEAN
    verdict = verify_log(small_log.directory, trust)
    assert (verdict.exit_code, verdict.seq) == (TAMPERED, 2)
    assert "seal" in verdict.message


def test_resealing_yesterday_with_the_key_of_today_is_found(options, time):
    options = replace(options, segment_age_s=10**9)
    write_some(options, time, 2)
    time.pass_us(86_400_000_000)
    write_some(options, time, 1)
    trust = home_trust(options, seal_keys=seal_keys(options))
    assert code_of(options, trust) == CLEAN
    (present,) = options.keys.glob("audit-seal-*.key")
    stolen = parse_seal_key(present.read_text())
    assert stolen.epoch == 96

    def backdated(records):
        """Yesterday's records with other actors, today's key and epoch."""
        return [{**each, "actor": "mallory"} if each["actor"] else each for each in records]

    forged(options, backdated, mac_key=stolen.mac_key)
    assert code_of(options, trust) == TAMPERED

    def in_todays_epoch(records):
        return [{**each, "epoch": 96} for each in backdated(records) if each["action"] != "audit.epoch"]

    forged(options, in_todays_epoch, mac_key=stolen.mac_key)
    assert code_of(options) == TAMPERED  # even without the sealing key: the epoch does not match the time


def test_an_epochs_end_cannot_be_cut_off_with_the_key_of_today(options, time):
    """Cut yesterday's last records and go on as if they had never been."""
    options = replace(options, segment_age_s=10**9)
    write_some(options, time, 2)
    time.pass_us(86_400_000_000)
    write_some(options, time, 1)
    trust = home_trust(options, seal_keys=seal_keys(options))
    (present,) = options.keys.glob("audit-seal-*.key")
    stolen = parse_seal_key(present.read_text())

    def cut(records):
        turn = next(at for at, each in enumerate(records) if each["action"] == "audit.epoch")
        return records[: turn - 3] + records[turn:]

    segment = last_segment(options)
    old = [json.loads(line) for line in segment.read_bytes().splitlines()]
    forged(options, cut, mac_key=stolen.mac_key)
    # Give back to the records of yesterday that stay the MACs they had.
    records = [json.loads(line) for line in segment.read_bytes().splitlines()]
    turn = next(at for at, each in enumerate(records) if each["action"] == "audit.epoch")
    forged(
        options, lambda them: [{**each, "mac": old[at]["mac"]} if at < turn else each for at, each in enumerate(them)]
    )
    verdict = verify_log(options.directory, trust)
    assert (verdict.exit_code, verdict.seq) == (TAMPERED, turn)


def test_a_rollback_of_log_and_checkpoints_is_found_by_a_witness(options, time, tmp_path):
    write_some(options, time, 2)
    earlier = copied(options, tmp_path, "earlier")
    write_some(options, time, 3)
    witness = tmp_path / "witness"
    shutil.copy(layout.checkpoints_of(last_segment(options)), witness)
    trust = home_trust(options, witness=Seen.read(witness))
    verdict = verify_log(options.directory, trust)
    assert (verdict.exit_code, verdict.witnessed) == (CLEAN, verdict.num_records)
    assert code_of(earlier) == CLEAN
    verdict = verify_log(earlier.directory, trust)
    assert (verdict.exit_code, verdict.seq) == (FEWER_RECORDS, 7)


def test_another_history_than_a_witness_saw_is_found(options, time, tmp_path):
    write_some(options, time, 3)
    witness = tmp_path / "witness"
    shutil.copy(layout.checkpoints_of(last_segment(options)), witness)
    forged(options, lambda records: [{**each, "address": "10.6.6.6"} if each["address"] else each for each in records])
    assert code_of(options) == CLEAN
    assert code_of(options, home_trust(options, witness=Seen.read(witness))) == TAMPERED


def test_a_log_that_was_replaced_by_a_new_one_is_found_by_a_witness(options, time, tmp_path):
    write_some(options, time, 3)
    witness = tmp_path / "witness"
    shutil.copy(layout.checkpoints_of(last_segment(options)), witness)
    shutil.rmtree(options.directory)
    write_some(options, time, 3)
    trust = home_trust(options, witness=Seen.read(witness))
    assert code_of(options, trust) == CLEAN
    verdicts = verify_tree(options.directory, trust)
    assert worst(verdicts) == FEWER_RECORDS
    assert "which is missing here" in verdicts[-1].message
    assert worst(verify_tree(options.directory, home_trust(options))) == CLEAN


def test_what_a_witness_keeps_of_other_hosts_is_passed_over(small_log, options, tmp_path):
    stranger = Signer("other.example/audit/00", Ed25519PrivateKey.generate())
    witness = tmp_path / "witness"
    note = stranger.sign(format_checkpoint(Checkpoint("other.example/audit/00", 5, bytes(32))))
    witness.write_text(note + "\n")
    assert worst(verify_tree(small_log.directory, home_trust(small_log, witness=Seen.read(witness)))) == CLEAN


def test_segments_verify_together_and_each_alone(options, time, tmp_path):
    write_segments(options, time, 3)
    segments = layout.segments(options.directory)
    assert len(segments) == 3
    assert code_of(options, home_trust(options, seal_keys=seal_keys(options))) == CLEAN
    for segment in segments:
        assert verify_segment(segment, options.directory, home_trust(options)).exit_code == CLEAN
    alone = tmp_path / segments[1].name
    shutil.copy(segments[1], alone)
    assert verify_segment(alone, options.directory, home_trust(options)).exit_code == CLEAN
    alone.write_bytes(alone.read_bytes().replace(b"alice", b"alicf", 1))
    assert verify_segment(alone, options.directory, home_trust(options)).exit_code == TAMPERED
    assert verify_segment(alone, tmp_path / "nothing", home_trust(options)).exit_code == UNKNOWN_KEY


@pytest.mark.parametrize(("gone", "expected"), [(0, TAMPERED), (1, TAMPERED)])
def test_a_missing_segment_is_found(options, time, gone, expected):
    write_segments(options, time, 3)
    layout.segments(options.directory)[gone].unlink()
    assert code_of(options) == expected


def test_a_last_segment_that_is_missing_is_found_by_a_witness_or_its_checkpoints(options, time, tmp_path):
    write_segments(options, time, 3)
    last = last_segment(options)
    witness = Seen.read(layout.checkpoints_of(last))
    last.unlink()
    layout.checkpoints_of(last).unlink()
    assert code_of(options, home_trust(options, witness=witness)) == FEWER_RECORDS


def changed_header(options, **changes):
    segment = last_segment(options)
    first, _, rest = segment.read_bytes().partition(b"\n")
    record = json.loads(first)
    record["segment"].update(changes)
    segment.write_bytes(encode(record) + b"\n" + rest)
    return verify_log(options.directory, home_trust(options))


@pytest.mark.parametrize(
    "changes",
    [
        {"tree": []},
        {"tree": ["00"]},
        {"open": [{"seq": 1}]},
        {"checkpoint": None},
        {"checkpoint": "no note"},
        {"seal": {"start": 1, "length": 0}},
    ],
)
def test_a_changed_header_is_found(options, time, changes):
    write_segments(options, time, 2)
    assert changed_header(options, **changes).exit_code == TAMPERED


def test_a_header_with_a_checkpoint_of_something_else_is_found(options, time):
    write_segments(options, time, 3)
    segments = layout.segments(options.directory)
    note = json.loads(segments[1].read_bytes().partition(b"\n")[0])["segment"]["checkpoint"]
    assert changed_header(options, checkpoint=note).exit_code == TAMPERED


def test_a_checkpoint_kept_with_later_records_is_found(options, time):
    write_segments(options, time, 2)
    first, second = (layout.checkpoints_of(each) for each in layout.segments(options.directory))
    second.write_bytes(first.read_bytes() + second.read_bytes())
    assert code_of(options) == TAMPERED


def test_a_checkpoint_signed_under_another_name_is_refused(small_log):
    signing = keys.signing_key(small_log.keys, create=False)
    path = layout.checkpoints_of(last_segment(small_log))
    vkey = small_log.directory / layout.VKEY
    other = Signer("other.example/x", signing)
    vkey.write_text(vkey.read_text() + format_vkey(other.verifier_key) + "\n")
    path.write_text(other.sign(format_checkpoint(Checkpoint("elsewhere", 9, bytes(32)))) + "\n")
    assert code_of(small_log) == TAMPERED


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"log_id": "0" * 32},
        {"ts": "2020-01-01T00:00:00.000000Z"},
        {"ts": "now"},
        {"epoch": 5},
        {"stage": "segment"},
        {"next_epoch": 7},
        {"action": "audit.epoch"},
        {"stage": "end", "begin": 77},
        {"stage": "end"},
        {"stage": None, "epoch": None},
    ],
)
def test_a_forger_with_the_signing_key_must_still_keep_the_rules(small_log, change):
    forged(small_log, lambda records: [{**each, **change} if at == 2 else each for at, each in enumerate(records)])
    verdict = verify_log(small_log.directory, home_trust(small_log))
    assert verdict.exit_code == TAMPERED
    assert verdict.seq in (2, 3)


def test_a_log_that_does_not_begin_at_the_beginning_is_found(small_log):
    segment = last_segment(small_log)
    lines = segment.read_bytes().splitlines()
    first = json.loads(lines[0]) | {"prev": "11" * 32}
    segment.write_bytes(b"".join(line + b"\n" for line in [encode(first), *lines[1:]]))
    verdict = verify_log(small_log.directory, home_trust(small_log))
    assert (verdict.exit_code, verdict.seq) == (TAMPERED, 0)


def test_a_segment_that_does_not_begin_with_a_segment_record_is_found(small_log):
    segment = last_segment(small_log)
    segment.write_bytes(segment.read_bytes().partition(b"\n")[2])
    assert code_of(small_log) == TAMPERED


def test_a_sealing_key_of_a_later_epoch_does_not_open_earlier_ones(small_log):
    (first,) = seal_keys(small_log)
    assert code_of(small_log, home_trust(small_log, seal_keys=(first.forward(1),))) == TAMPERED
    assert code_of(small_log, home_trust(small_log, seal_keys=(replace(first, log_id="another"),))) == CLEAN


def test_a_mac_is_checked_with_its_epochs_key(small_log):
    (first,) = seal_keys(small_log)
    record = json.loads(last_segment(small_log).read_bytes().splitlines()[3])
    assert compute_mac(record, first.mac_key) == record["mac"]


def test_a_line_that_is_being_written_is_waited_for(options, time, monkeypatch):
    write_some(options, time, 2)
    segment = last_segment(options)
    data = segment.read_bytes()
    segment.write_bytes(data[:-5])
    monkeypatch.setattr(real_time, "sleep", lambda _: segment.write_bytes(data))
    assert code_of(options) == CLEAN


def test_verdicts_are_ordered_by_gravity():
    verdicts = [Verdict(code, "", "") for code in (CLEAN, TORN_TAIL, FEWER_RECORDS, UNKNOWN_KEY, TAMPERED)]
    assert [worst(verdicts[:end]) for end in range(1, 6)] == [0, 4, 5, 6, 1]
    assert worst([]) == CLEAN
    assert Verdict(CLEAN, "fine", "x").as_json()["ok"]


def test_a_log_of_commands_beside_the_main_one_is_verified_too(options, time):
    write_some(options, time)
    aside = replace(options, directory=options.directory / "commands")
    write_some(aside, time)
    assert [each.exit_code for each in verify_tree(options.directory, home_trust(options))] == [CLEAN, CLEAN]
    segment = last_segment(aside)
    segment.write_bytes(segment.read_bytes().replace(b"alice", b"alicf"))
    assert worst(verify_tree(options.directory, home_trust(options))) == TAMPERED


def test_the_witness_file_of_another_log_says_nothing(small_log, tmp_path):
    assert Path(small_log.directory).exists()
    verdict = verify_log(small_log.directory, home_trust(small_log, witness=Seen(())))
    assert (verdict.exit_code, verdict.witnessed) == (CLEAN, 0)
