"""Opening a log that another process left, however it ended; and refusing one that is not what was left."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from chatsvc.audit import keys
from chatsvc.audit.command import open_for_command
from chatsvc.audit.facts import Facts, Result
from chatsvc.audit.format import layout
from chatsvc.audit.format.ratchet import parse_seal_key
from chatsvc.audit.keys import signing_key
from chatsvc.audit.log import AuditLog
from chatsvc.audit.verify.export import Span, export
from chatsvc.audit.verify.export_check import verify_export
from chatsvc.audit.verify.log import verify_log, verify_tree
from chatsvc.audit.verify.verdict import CLEAN, TAMPERED
from chatsvc.audit.write.contents import make_auditor_key
from chatsvc.audit.write.journal import Journal
from chatsvc.errors import AuditUnavailable, OperatorError
from tests.audit.logs import DAY_US, home_trust, last_segment, write_segments, write_some
from tests.audit.test_log import CHAT, found


def is_clean(options) -> bool:
    seals = tuple(parse_seal_key(path.read_text()) for path in keys.initial_seals(options.keys))
    return verify_log(options.directory, home_trust(options, seal_keys=seals)).exit_code == CLEAN


def test_a_torn_tail_is_cut_and_told(small_log):
    with last_segment(small_log).open("ab") as file:
        file.write(b'{"action":"chat')
    with layout.checkpoints_of(last_segment(small_log)).open("ab") as file:
        file.write(b"chatsvc.local/audit/")
    AuditLog.open(small_log).close()
    assert is_clean(small_log)
    assert found(small_log, action="audit.start")[-1]["details"]["torn_bytes"] == 15


def test_orphans_are_closed_also_from_an_earlier_segment(options, time):
    log = AuditLog.open(replace(options, segment_age_s=1), clock=time.clock())
    log.begin(Facts("long", "chat.generate", "alice"))
    time.pass_us(2_000_000)
    log.event(CHAT, Result("allowed"))  # rotates
    assert len(layout.segments(options.directory)) == 2
    log.close()
    write_some(options, time, 0)
    (end,) = found(options, stage="end")
    assert (end["request_id"], end["outcome"], end["actor"]) == ("long", "aborted", "alice")
    assert is_clean(options)


def test_rotation_by_size_keeps_one_chain(options, time):
    small = replace(options, segment_bytes=3000)
    for _ in range(3):
        write_some(small, time, 5)
    assert len(layout.segments(options.directory)) > 5
    assert is_clean(options)
    for path in layout.segments(options.directory)[:-1]:
        assert path.stat().st_size < 3000 + 6000


def test_epochs_turn_while_running_and_over_a_pause(options, time):
    log = AuditLog.open(replace(options, epoch_s=60, segment_age_s=10**9), clock=time.clock())
    for _ in range(3):
        time.pass_us(61_000_000)
        log.event(CHAT, Result("allowed"))
    log.close()
    time.pass_us(DAY_US)
    write_some(options, time, 1)
    turns = found(options, action="audit.epoch")
    assert [(each["epoch"], each["next_epoch"]) for each in turns][:3] == [(0, 1), (1, 2), (2, 3)]
    assert turns[-1]["next_epoch"] > 1440
    assert is_clean(options)
    (present,) = options.keys.glob("audit-seal-*.key")
    assert parse_seal_key(present.read_text()).epoch == turns[-1]["next_epoch"]


def test_a_crash_between_an_epochs_end_and_the_new_key_is_mended(options, time, monkeypatch):
    log = AuditLog.open(replace(options, epoch_s=60), clock=time.clock())
    log.close()
    (present,) = options.keys.glob("audit-seal-*.key")
    old = present.read_bytes()
    time.pass_us(61_000_000)
    monkeypatch.setattr(Journal, "leave_epoch", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        AuditLog.open(options, clock=time.clock())
    monkeypatch.undo()
    assert present.read_bytes() == old
    write_some(options, time, 1)
    assert is_clean(options)


def test_a_log_that_was_rolled_back_behind_its_sealing_key_is_not_written(options, time, tmp_path):
    write_some(options, time, 1)
    shutil.copytree(options.directory, tmp_path / "backup")
    time.pass_us(DAY_US // 2)
    write_some(options, time, 1)
    shutil.rmtree(options.directory)
    shutil.copytree(tmp_path / "backup", options.directory)
    with pytest.raises(OperatorError, match="rolled back"):
        AuditLog.open(options, clock=time.clock())


def test_a_log_shorter_than_its_checkpoint_is_not_written(small_log):
    segment = last_segment(small_log)
    segment.write_bytes(b"".join(segment.read_bytes().splitlines(keepends=True)[:-2]))
    with pytest.raises(OperatorError, match=r"7 records, but a checkpoint of 9"):
        AuditLog.open(small_log)


def test_a_changed_log_is_not_written(small_log):
    segment = last_segment(small_log)
    segment.write_bytes(segment.read_bytes().replace(b"alice", b"alicf", 1))
    with pytest.raises(OperatorError, match="damaged: record 2"):
        AuditLog.open(small_log)


def test_a_changed_header_is_not_written(small_log):
    segment = last_segment(small_log)
    segment.write_bytes(segment.read_bytes().replace(b'"tree":[]', b'"tree":{}'))
    with pytest.raises(OperatorError, match="damaged"):
        AuditLog.open(small_log)


def test_segments_that_are_gone_are_no_reason_to_begin_a_new_log(small_log):
    last_segment(small_log).unlink()
    with pytest.raises(OperatorError, match="missing"):
        AuditLog.open(small_log)


def test_a_segment_that_was_never_begun_durably_is_dropped(options, time):
    write_segments(options, time, 2)
    unfinished = options.directory / layout.segment_name(500)
    unfinished.write_bytes(b'{"action":"audit.segm')
    layout.checkpoints_of(unfinished).write_bytes(b"")
    write_some(options, time, 1)
    assert not unfinished.exists()
    assert is_clean(options)


def test_a_segment_with_checkpoints_but_without_a_line_is_evidence(options, time):
    write_segments(options, time, 2)
    last_segment(options).write_bytes(b'{"action":"audit.segm')
    with pytest.raises(OperatorError, match="damaged"):
        AuditLog.open(options)


@pytest.mark.parametrize("name", ["audit-signing.pem", "audit-hmac.key", "audit-seal-*.key"])
def test_a_key_that_is_gone_is_named_and_not_made_again(small_log, name):
    (path,) = small_log.keys.glob(name)
    path.unlink()
    with pytest.raises(OperatorError, match=path.name):
        AuditLog.open(small_log)
    assert not path.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("audit-signing.pem", b"no key"),
        ("audit-hmac.key", b"short"),
        ("audit-signing.pem", make_auditor_key()[0]),  # X25519, which does not sign
    ],
)
def test_a_key_that_is_no_key_is_named(small_log, name, content):
    path = small_log.keys / name
    path.chmod(0o600)
    path.write_bytes(content)
    with pytest.raises(OperatorError, match=name):
        AuditLog.open(small_log)


def test_a_key_that_cannot_be_read_is_named(small_log):
    path = small_log.keys / "audit-hmac.key"
    path.unlink()
    path.mkdir()
    with pytest.raises(OperatorError, match="cannot be read"):
        AuditLog.open(small_log)


def test_the_public_key_beside_the_log_is_put_back(small_log):
    (small_log.directory / layout.VKEY).unlink()
    AuditLog.open(small_log).close()
    assert is_clean(small_log)


def test_another_origin_in_the_configuration_does_not_rename_a_log(small_log):
    AuditLog.open(replace(small_log, origin="renamed.example/audit")).close()
    assert is_clean(small_log)


def test_a_command_writes_the_main_log_when_nobody_does(small_log):
    log = open_for_command(small_log)
    log.event(Facts("", "admin.key.create", "command line"), Result("allowed", details={"name": "n"}))
    log.close()
    assert found(small_log, action="admin.key.create")[0]["details"] == {"name": "n"}


def test_a_command_writes_beside_the_service(options, log):
    for _ in range(2):
        command_log = open_for_command(options)
        command_log.event(Facts("", "admin.key.create", "command line"), Result("allowed"))
        command_log.close()
    aside = replace(options, directory=options.directory / "commands")
    assert len(found(aside, action="admin.key.create")) == 2
    assert not found(options, action="admin.key.create")
    log.event(CHAT, Result("allowed"))
    assert {each.exit_code for each in verify_tree(options.directory, home_trust(options))} == {CLEAN}


def test_a_command_is_refused_where_no_log_can_be_written(options, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AuditUnavailable):
        open_for_command(replace(options, directory=tmp_path / "file" / "audit"))


def test_a_log_of_another_boot_goes_on(small_log, time):
    write_some(small_log, time, 1)
    assert len(found(small_log, action="audit.start")) == 2
    assert is_clean(small_log)


def test_another_signing_key_may_be_put_in_place_and_old_checkpoints_stay_good(options, time):
    write_segments(options, time, 2)
    path = options.keys / "audit-signing.pem"
    old = path.read_bytes()
    path.unlink()
    elsewhere = options.keys.parent / "other keys"
    signing_key(elsewhere, create=True)
    shutil.copy(elsewhere / "audit-signing.pem", path)
    assert path.read_bytes() != old
    write_some(replace(options, segment_age_s=3600), time, 1)
    assert is_clean(options)
    assert len((options.directory / layout.VKEY).read_text().splitlines()) == 2
    exported = options.directory.parent / "export"
    exported.write_bytes(b"".join(export(options.directory, options.keys, Span(0, time.wall_us * 2, time.wall_us))))
    assert verify_export(exported, home_trust(options)).exit_code == CLEAN


def test_a_damaged_public_key_is_no_start(small_log):
    (small_log.directory / layout.VKEY).write_bytes(b"\xff no key\n")
    with pytest.raises(OperatorError, match="damaged"):
        AuditLog.open(small_log)
    assert verify_log(small_log.directory, home_trust(small_log)).exit_code == TAMPERED
