"""Retention: whole segments, at least 180 days, a signed tombstone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chatsvc.audit import keys
from chatsvc.audit.format import layout
from chatsvc.audit.format.notes import NoteInvalid, Signer
from chatsvc.audit.format.ratchet import parse_seal_key
from chatsvc.audit.format.tombstone import Tombstone, format_tombstone, parse_tombstone, read_tombstone
from chatsvc.audit.verify.log import verify_log
from chatsvc.audit.verify.prune import NotPruned, prunable, prune, read_policy
from chatsvc.audit.verify.verdict import CLEAN, FEWER_RECORDS, TAMPERED
from chatsvc.errors import ConfigurationInvalid
from chatsvc.resources import resource_path
from tests.audit.logs import DAY_US, home_trust, write_segments, write_some

OTHER_TITLE = format_tombstone(Tombstone("a", 1, bytes(32), "", "", 180)).replace("stone v1", "stone v2")


def verdict_of(options):
    seals = tuple(parse_seal_key(path.read_text()) for path in keys.initial_seals(options.keys))
    return verify_log(options.directory, home_trust(options, seal_keys=seals))


@pytest.fixture
def old_log(options, time):
    """Five segments, sixty days apart; the last one is now."""
    write_segments(options, time, 5, days_between=60)
    time.pass_us(-60 * DAY_US)
    return options


def test_what_is_older_than_the_retention_goes_and_the_rest_verifies(old_log, time):
    before = layout.segments(old_log.directory)
    pruned = prune(old_log.directory, old_log.keys, 180, time.wall_us)
    assert pruned is not None
    left = layout.segments(old_log.directory)
    assert [each.name for each in before if each not in left] == list(pruned.segments) == [before[0].name]
    verdict = verdict_of(old_log)
    assert (verdict.exit_code, verdict.first_seq) == (CLEAN, pruned.num_records)
    write_some(old_log, time, 1)
    assert verdict_of(old_log).exit_code == CLEAN


def test_pruning_again_later_replaces_the_tombstone(old_log, time):
    prune(old_log.directory, old_log.keys, 180, time.wall_us)
    pruned = prune(old_log.directory, old_log.keys, 180, time.wall_us + 100 * DAY_US)
    assert pruned is not None
    assert verdict_of(old_log).first_seq == pruned.num_records
    assert verdict_of(old_log).exit_code == CLEAN


def test_the_last_segment_stays_however_old(old_log, time):
    prune(old_log.directory, old_log.keys, 180, time.wall_us + 1000 * DAY_US)
    assert len(layout.segments(old_log.directory)) == 1
    assert verdict_of(old_log).exit_code == CLEAN


def test_nothing_goes_that_is_younger(old_log, time):
    assert prune(old_log.directory, old_log.keys, 360, time.wall_us) is None
    assert not (old_log.directory / layout.TOMBSTONE).exists()
    with pytest.raises(AssertionError):
        prunable(old_log.directory, 179, time.wall_us)


def test_a_log_that_does_not_verify_is_evidence_and_stays(old_log, time):
    first = layout.segments(old_log.directory)[0]
    first.write_bytes(first.read_bytes().replace(b"alice", b"alicf", 1))
    with pytest.raises(NotPruned) as caught:
        prune(old_log.directory, old_log.keys, 180, time.wall_us)
    assert caught.value.verdict.exit_code == TAMPERED
    assert first.exists()


def test_what_a_crash_leaves_of_removed_segments_is_ignored_and_removed_next_time(old_log, time, monkeypatch):
    first = layout.segments(old_log.directory)[0]
    real = Path.unlink

    def failing(path, *, missing_ok=False):
        if path == layout.checkpoints_of(first):
            raise KeyboardInterrupt
        real(path, missing_ok=missing_ok)

    data = first.read_bytes()
    monkeypatch.setattr(Path, "unlink", failing)
    with pytest.raises(KeyboardInterrupt):
        prune(old_log.directory, old_log.keys, 180, time.wall_us)
    monkeypatch.undo()
    assert verdict_of(old_log).exit_code == CLEAN
    first.write_bytes(data)
    assert verdict_of(old_log).exit_code == CLEAN
    prune(old_log.directory, old_log.keys, 180, time.wall_us + 60 * DAY_US)
    assert verdict_of(old_log).exit_code == CLEAN
    assert not first.exists()


def test_segments_that_went_without_a_tombstone_are_missed(old_log, time):
    first, second = layout.segments(old_log.directory)[:2]
    first.unlink()
    verdict = verdict_of(old_log)
    assert (verdict.exit_code, "without a tombstone" in verdict.message) == (TAMPERED, True)
    prune_more = Tombstone("x", 1, bytes(32), "", "", 180)
    signer = Signer(parse_origin(second), keys.signing_key(old_log.keys, create=False))
    (old_log.directory / layout.TOMBSTONE).write_text(signer.sign(format_tombstone(prune_more)))
    assert verdict_of(old_log).exit_code == TAMPERED
    assert time.wall_us


def parse_origin(segment) -> str:
    return json.loads(segment.read_bytes().partition(b"\n")[0])["segment"]["origin"]


def test_a_tombstone_over_everything_leaves_fewer_records(old_log):
    segment = layout.segments(old_log.directory)[0]
    signer = Signer(parse_origin(segment), keys.signing_key(old_log.keys, create=False))
    stone = Tombstone(parse_origin(segment), 10**6, bytes(32), "", "", 180)
    (old_log.directory / layout.TOMBSTONE).write_text(signer.sign(format_tombstone(stone)))
    assert verdict_of(old_log).exit_code == FEWER_RECORDS


@pytest.mark.parametrize(
    "text", ["", "a\nb\nc\n", 'a\ntombstone v1\n{"size":1}\n', "a\ntombstone v1\n{}\n", OTHER_TITLE]
)
def test_a_text_that_is_no_tombstone_is_refused(text):
    with pytest.raises(NoteInvalid):
        parse_tombstone(text)


def test_a_tombstone_comes_back(tmp_path):
    stone = Tombstone("origin", 7, bytes(32), "then", "now", 180)
    assert parse_tombstone(format_tombstone(stone)) == stone
    (tmp_path / layout.TOMBSTONE).write_bytes(b"\xff")
    with pytest.raises(NoteInvalid):
        read_tombstone(tmp_path, [])


def test_the_policy_that_comes_along_is_the_law():
    assert read_policy(resource_path("config/audit-policy.toml")) == 180


@pytest.mark.parametrize(
    "text", ["", "[retention]", "[retention]\ndays = 30", "[retention]\ndays = '200'", "no toml", "retention = 1"]
)
def test_a_policy_below_the_law_or_unreadable_is_refused(tmp_path, text):
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(ConfigurationInvalid):
        read_policy(tmp_path / "policy.toml")
    with pytest.raises(ConfigurationInvalid):
        read_policy(tmp_path / "none.toml")
