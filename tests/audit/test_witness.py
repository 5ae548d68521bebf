"""Checkpoints that are sent away, and what comes back from there."""

from __future__ import annotations

import socket
from contextlib import closing
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import text

from chatsvc.audit.facts import Result
from chatsvc.audit.format import layout
from chatsvc.audit.format.notes import Checkpoint, NoteInvalid, Signer, format_checkpoint
from chatsvc.audit.log import AuditLog
from chatsvc.audit.verify.log import verify_log, verify_tree
from chatsvc.audit.verify.verdict import CLEAN, FEWER_RECORDS
from chatsvc.audit.witness.database import DatabaseWitness
from chatsvc.audit.witness.files import FileWitness, SyslogWitness, WitnessRefuses
from chatsvc.audit.witness.publisher import Publisher
from chatsvc.audit.witness.seen import Seen
from chatsvc.errors import OperatorError
from chatsvc.store.database import Database
from tests.audit.logs import home_trust, last_segment
from tests.audit.test_log import CHAT, wait_until

SIGNER = Signer("log.example/00", Ed25519PrivateKey.generate())


def note_of(size: int, root: bytes = bytes(32)) -> str:
    return SIGNER.sign(format_checkpoint(Checkpoint("log.example/00", size, root)))


def test_a_file_elsewhere_gets_every_checkpoint_and_confirms_the_log(options, tmp_path):
    witness = tmp_path / "elsewhere"
    log = AuditLog.open(replace(options, witness_files=(witness,), checkpoint_records=2))
    for _ in range(7):
        log.event(CHAT, Result("allowed"))
    log.close()
    verdict = verify_log(options.directory, home_trust(options, witness=Seen.read(witness)))
    assert (verdict.exit_code, verdict.witnessed) == (CLEAN, verdict.num_records)


def test_a_log_cut_off_together_with_its_checkpoints_is_found(options, tmp_path):
    witness = tmp_path / "elsewhere"
    log = AuditLog.open(replace(options, witness_files=(witness,)))
    segment = last_segment(options)
    notes = layout.checkpoints_of(segment)
    before = segment.read_bytes(), notes.read_bytes()
    log.event(CHAT, Result("allowed"))
    log.close()
    segment.write_bytes(before[0])
    notes.write_bytes(before[1])
    assert verify_log(options.directory, home_trust(options)).exit_code == CLEAN
    assert verify_log(options.directory, home_trust(options, witness=Seen.read(witness))).exit_code == FEWER_RECORDS


def test_a_file_witness_refuses_a_log_that_became_shorter_or_another(tmp_path):
    witness = FileWitness(tmp_path / "w")
    witness.publish(note_of(5))
    witness.publish(note_of(5))
    assert len(Seen.read(tmp_path / "w").notes) == 1
    for refused in (note_of(4), note_of(5, b"\x01" * 32)):
        with pytest.raises(WitnessRefuses):
            witness.publish(refused)
    witness.publish(note_of(6))
    assert Seen.read(tmp_path / "w").sizes("00") == [5, 6]


def test_a_witness_that_cannot_be_reached_alarms_and_stops_nothing(options, tmp_path):
    gone = tmp_path / "not mounted" / "witness"
    log = AuditLog.open(replace(options, witness_files=(gone,), checkpoint_records=1))
    log.event(CHAT, Result("allowed"))
    wait_until(log.alarms)
    log.event(CHAT, Result("allowed"))
    assert "not mounted" in log.alarms()[0]
    assert log.problem() is None
    gone.parent.mkdir()
    log.event(CHAT, Result("allowed"))
    wait_until(lambda: not log.alarms())
    log.close()


def test_a_witness_that_stays_away_is_told_once(tmp_path, caplog):
    publisher = Publisher([FileWitness(tmp_path / "none" / "w")])
    for size in (1, 2):
        publisher.send(note_of(size))
    publisher.stop()
    publisher.run()
    assert caplog.text.count("does not accept checkpoints") == 1


def test_the_system_log_gets_checkpoints_that_can_be_read_back(options, tmp_path):
    address, kept = tmp_path / "log.sock", tmp_path / "messages"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(address))
        log = AuditLog.open(replace(options, witness_syslog=str(address)))
        log.event(CHAT, Result("allowed"))
        log.close()
        receiver.settimeout(5)
        lines = [receiver.recv(65536) for _ in range(2)]  # at the start and at the stop
    assert all(line.startswith(b"<110>chatsvc-checkpoint ") for line in lines)
    written = [b"Nov 22 12:00:01 host " + line[5:] + b"\n" for line in lines]
    kept.write_bytes(b"".join([b"Nov 22 12:00:00 host chatsvc: started\n", *written]))
    verdict = verify_log(options.directory, home_trust(options, witness=Seen.read(kept)))
    assert (verdict.exit_code, verdict.witnessed) == (CLEAN, verdict.num_records)


def test_a_system_log_that_is_not_there_is_an_error_of_the_witness(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        SyslogWitness(str(tmp_path / "none")).publish(note_of(1))


def test_a_note_alone_and_an_older_copy_are_witnesses_too(small_log, tmp_path):
    (tmp_path / "one").write_text(note_of(5))
    assert Seen.read(tmp_path / "one").sizes("00") == [5]
    (tmp_path / "torn").write_text(note_of(5) + "\n" + note_of(6)[:-9])
    assert Seen.read(tmp_path / "torn").sizes("00") == [5]
    (verdict,) = verify_tree(small_log.directory, home_trust(small_log, witness=Seen.read(small_log.directory)))
    assert (verdict.exit_code, verdict.witnessed) == (CLEAN, 9)


@pytest.mark.parametrize(
    "data", [b"\xff\n\n\xff\n", b"", b"nothing\n", b'chatsvc-checkpoint "\\x"\n', b'chatsvc-checkpoint "no note"\n']
)
def test_a_file_without_checkpoints_is_no_witness(tmp_path, data):
    (tmp_path / "w").write_bytes(data)
    with pytest.raises(NoteInvalid):
        Seen.read(tmp_path / "w")


def test_a_witness_that_never_answers_costs_only_an_alarm():
    publisher = Publisher([])
    for size in range(300):
        publisher.send(note_of(size + 1) if size < 2 else "note")
    assert "too many checkpoints are waiting" in publisher.alarms()[0]
    publisher._waiting.get_nowait()
    publisher.stop()
    publisher.run()
    assert not publisher.alarms()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'witness.db'}"
    server = request.getfixturevalue("postgres")
    with closing(Database(server.url)) as database, database.session() as session:
        session.execute(text("DROP TABLE IF EXISTS chatsvc_checkpoints"))
    return server.url


def notes_kept(url):
    with closing(Database(url)) as database, database.reading() as session:
        return session.execute(text("SELECT note FROM chatsvc_checkpoints ORDER BY origin, size")).scalars().all()


def test_a_database_elsewhere_keeps_checkpoints_that_confirm_the_log(options, tmp_path, database_url):
    log = AuditLog.open(replace(options, witness_url=database_url, checkpoint_records=2))
    for _ in range(7):
        log.event(CHAT, Result("allowed"))
    log.close()
    assert not log.alarms()
    (tmp_path / "kept").write_text("".join(f"{note}\n" for note in notes_kept(database_url)))
    verdict = verify_log(options.directory, home_trust(options, witness=Seen.read(tmp_path / "kept")))
    assert (verdict.exit_code, verdict.witnessed) == (CLEAN, verdict.num_records)


def test_a_database_refuses_a_log_that_became_shorter_or_another(database_url):
    with closing(DatabaseWitness(database_url)) as witness:
        witness.publish(note_of(5))
        witness.publish(note_of(5))
        for refused in (note_of(4), note_of(5, b"\x01" * 32)):
            with pytest.raises(WitnessRefuses):
                witness.publish(refused)
        witness.publish(note_of(6))
    assert notes_kept(database_url) == [note_of(5), note_of(6)]


def test_a_database_that_is_away_alarms_and_stops_nothing(options, tmp_path):
    url = f"sqlite:///{tmp_path / 'none' / 'witness.db'}"
    log = AuditLog.open(replace(options, witness_url=url, checkpoint_records=1))
    log.event(CHAT, Result("allowed"))
    wait_until(log.alarms)
    assert log.problem() is None
    assert "none" not in repr(replace(options, witness_url=url))
    log.close()


@pytest.mark.parametrize("url", ["no url", "oracle+cx_oracle://x"])
def test_a_url_that_is_no_database_is_no_start_and_leaves_the_log_free(options, url):
    with pytest.raises(OperatorError, match="witness_url"):
        AuditLog.open(replace(options, witness_url=url))
    AuditLog.open(options).close()
