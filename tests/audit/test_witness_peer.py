"""Another replica as a witness: what it takes, what it refuses, and what the sender makes of either."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from werkzeug.serving import make_server

from chatsvc.app import running_in
from chatsvc.audit.facts import Result
from chatsvc.audit.format import layout
from chatsvc.audit.format.notes import Checkpoint, Signer, format_checkpoint, format_vkey
from chatsvc.audit.format.tree import ProofInvalid, consistency_proof, leaf_hash, root_of, verify_consistency
from chatsvc.audit.log import AuditLog
from chatsvc.audit.options import Peer
from chatsvc.audit.verify.log import verify_log
from chatsvc.audit.verify.verdict import CLEAN, FEWER_RECORDS, TAMPERED
from chatsvc.audit.witness.files import WitnessRefuses
from chatsvc.audit.witness.growth_proofs import GrowthProofs
from chatsvc.audit.witness.peer import PeerWitness
from chatsvc.audit.witness.seen import Seen
from chatsvc.errors import OperatorError
from chatsvc.guard.credentials.api_keys import NewKey
from tests.audit.logs import home_trust, lines_of, write_segments, write_some
from tests.audit.test_log import CHAT, wait_until
from tests.system.conftest import make_certificate

ORIGIN = "replica.example/audit/" + "0" * 32
SIGNER = Signer(ORIGIN, Ed25519PrivateKey.generate())
LEAVES = [leaf_hash(bytes([number])) for number in range(40)]


def note_of(size: int, leaves: list[bytes] = LEAVES, signer: Signer = SIGNER) -> str:
    return signer.sign(format_checkpoint(Checkpoint(signer.verifier_key.name, size, root_of(leaves[:size]))))


def body_of(size: int, old: int, leaves: list[bytes] = LEAVES) -> dict:
    proof = [each.hex() for each in consistency_proof(leaves[:size], old)] if old else []
    return {"checkpoint": note_of(size, leaves), "old_size": old, "proof": proof}


@dataclass
class Replica:
    """A real application, and a key for one that wants to be witnessed."""

    app: object
    pinned: Path
    key: str

    @property
    def running(self):
        return running_in(self.app)

    @property
    def directory(self) -> Path:
        return self.running.settings.home / "witnessed"

    def post(self, body: dict):
        headers = {"Authorization": f"Bearer {self.key}"}
        return self.app.test_client().post("/audit/witness", json=body, headers=headers)

    def size(self, origin: str = ORIGIN) -> int:
        headers = {"Authorization": f"Bearer {self.key}"}
        answer = self.app.test_client().get("/audit/witness", query_string={"origin": origin}, headers=headers)
        assert answer.json["origin"] == origin
        return answer.json["size"]

    def pin(self, directory: Path) -> None:
        self.pinned.write_bytes((directory / layout.VKEY).read_bytes())

    def refusals(self) -> list[str]:
        text = b"".join(path.read_bytes() for path in layout.segments(self.running.settings.audit_directory))
        records = [json.loads(line) for line in text.splitlines()]
        return [each["reason"] for each in records if each["action"] == "audit.witness"]


@pytest.fixture
def replica(make_app, tmp_path) -> Replica:
    pinned = tmp_path / "witnessed.vkey"
    pinned.write_text(format_vkey(SIGNER.verifier_key) + "\n")
    app = make_app(with_model=False, CHATSVC_AUDIT__WITNESSED_KEYS_FILE=str(pinned))
    guard = running_in(app).guard
    guard.accounts.add("replica-1", "a replica's long password", ["witness"])
    return Replica(app, pinned, guard.api_keys.create(NewKey("replica-1", "witness", ["witness"]))[0])


@contextmanager
def served(app) -> Iterator[str]:
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# -- the witness


def test_heads_that_continue_each_other_are_held_and_the_last_one_is_a_witness(replica):
    assert replica.size() == 0
    for old, size in ((0, 3), (3, 3), (3, 4), (4, 40)):
        answer = replica.post(body_of(size, old))
        assert (answer.status_code, answer.json) == (200, {"origin": ORIGIN, "size": size})
        assert replica.size() == size
    assert Seen.read(replica.directory).sizes("0" * 32) == [40]


def test_a_head_that_does_not_continue_what_was_seen_is_409_and_on_record(replica):
    others = [leaf_hash(b"other"), *LEAVES[1:]]
    assert replica.post(body_of(9, 0)).status_code == 200
    refused = {
        "an older one": body_of(5, 0) | {"old_size": 9},
        "another one of the same length": body_of(9, 9, others),
        "another history": body_of(12, 9, others),
        "a proof from elsewhere": body_of(12, 9) | {"proof": body_of(12, 7)["proof"]},
        "no proof": body_of(12, 9) | {"proof": []},
        "as if nothing was seen": body_of(12, 0),
        "as if more was seen": body_of(12, 11),
    }
    for name, body in refused.items():
        answer = replica.post(body)
        assert (answer.status_code, answer.json["error"]["code"]) == (409, "witness_refuses"), name
        assert replica.size() == 9
    assert len(replica.refusals()) == len(refused)
    assert replica.post(body_of(12, 9)).status_code == 200


def test_a_first_head_proves_nothing(replica):
    assert replica.post(body_of(9, 5) | {"old_size": 0}).status_code == 409


def test_only_pinned_keys_under_the_name_of_their_log_are_taken(replica):
    stranger = Signer(ORIGIN, Ed25519PrivateKey.generate())
    renamed = SIGNER.sign(format_checkpoint(Checkpoint("somebody/else", 1, LEAVES[0])))
    forged = note_of(3).replace("\n3\n", "\n2\n")
    for note, status in ((note_of(3, signer=stranger), 403), (renamed, 400), (forged, 400), ("no note", 400)):
        answer = replica.post({"checkpoint": note, "old_size": 0, "proof": []})
        assert answer.status_code == status, answer.json
    assert replica.size() == 0
    replica.pinned.write_text("")
    assert replica.post(body_of(3, 0)).status_code == 403


def test_a_replica_that_was_told_of_no_other_witnesses_nothing(make_app):
    app = make_app(with_model=False)
    guard = running_in(app).guard
    guard.accounts.add("replica-1", "a replica's long password", ["witness"])
    replica = Replica(app, Path("unused"), guard.api_keys.create(NewKey("replica-1", "w", ["witness"]))[0])
    assert replica.post(body_of(3, 0)).status_code == 403


def test_the_route_wants_a_scope_of_its_own_and_one_log(replica, login):
    client = replica.app.test_client()
    for name in ("alice", "admin"):
        assert client.post("/audit/witness", json=body_of(3, 0), headers=login(name, at=client)).status_code == 403
    auditor = login("admin", at=client)
    assert client.get("/audit/witness?origin=x", headers=auditor).json == {"origin": "x", "size": 0}
    for query in ("", "?origin=", "?origin=a&origin=b"):
        assert client.get(f"/audit/witness{query}", headers=auditor).status_code == 400


@pytest.mark.parametrize(
    "change", [{"proof": ["zz"]}, {"proof": ["00" * 32] * 131}, {"old_size": -1}, {"old_size": "1"}, {"more": 1}]
)
def test_what_is_no_submission_is_400(replica, change):
    assert replica.post(body_of(3, 0) | change).status_code == 400


def test_what_cannot_be_held_or_read_is_503(replica):
    replica.pinned.write_text("no key\n")
    assert replica.post(body_of(3, 0)).status_code == 503
    replica.pinned.write_text(format_vkey(SIGNER.verifier_key) + "\n")
    assert replica.post(body_of(3, 0)).status_code == 200
    (held,) = replica.directory.glob("*.checkpoints")
    held.write_text("damaged")
    assert replica.post(body_of(4, 3)).status_code == 503
    held.unlink()
    held.mkdir()  # a name that no file can take the place of
    assert replica.post(body_of(4, 3)).status_code == 503
    held.rmdir()
    replica.directory.joinpath("witness.lock").unlink()
    replica.directory.rmdir()
    replica.directory.write_text("in the way")
    assert replica.post(body_of(3, 0)).status_code == 503


def test_a_long_name_of_a_log_is_held_too(replica):
    signer = Signer("replica.example/" + "ü" * 200, Ed25519PrivateKey.generate())
    replica.pinned.write_text(format_vkey(signer.verifier_key) + "\n")
    body = {"checkpoint": note_of(3, signer=signer), "old_size": 0, "proof": []}
    assert replica.post(body).status_code == 200
    assert replica.size(signer.verifier_key.name) == 3


# -- the sender


@pytest.fixture
def witnessed_options(options, replica):
    """A log whose key is pinned at a replica that is served."""
    AuditLog.open(options).close()
    replica.pin(options.directory)
    with served(replica.app) as url:
        yield replace(options, witness_peer=Peer(url, replica.key), checkpoint_records=2)


def test_a_peer_gets_every_head_and_confirms_the_log(witnessed_options, replica):
    for _ in range(2):  # the second time it has to look up where the peer is
        log = AuditLog.open(witnessed_options)
        for _ in range(7):
            log.event(CHAT, Result("allowed"))
        log.close()
        assert not log.alarms()
    verdict = verify_log(
        witnessed_options.directory, home_trust(witnessed_options, witness=Seen.read(replica.directory))
    )
    assert (verdict.exit_code, verdict.witnessed) == (CLEAN, verdict.num_records)


def test_a_log_rolled_back_with_its_checkpoints_is_refused_by_the_peer_and_found_by_the_verifier(
    witnessed_options, replica
):
    before = {path: path.read_bytes() for path in witnessed_options.directory.iterdir()}
    log = AuditLog.open(witnessed_options)
    for _ in range(9):
        log.event(CHAT, Result("allowed"))
    log.close()
    held = Seen.read(replica.directory).notes
    for path in witnessed_options.directory.iterdir():
        path.unlink()
    for path, data in before.items():
        path.write_bytes(data)
    log = AuditLog.open(witnessed_options)
    wait_until(log.alarms)
    assert "it has seen" in log.alarms()[0]
    for _ in range(9):  # and another history that has become longer than what the peer saw
        log.event(CHAT, Result("allowed"))
    log.close()
    assert Seen.read(replica.directory).notes == held
    assert verify_log(witnessed_options.directory, home_trust(witnessed_options)).exit_code == CLEAN
    assert verify_log(
        witnessed_options.directory, home_trust(witnessed_options, witness=Seen.read(replica.directory))
    ).exit_code in (
        TAMPERED,
        FEWER_RECORDS,
    )
    assert replica.refusals()


def test_a_peer_that_is_away_alarms_and_stops_nothing(options):
    log = AuditLog.open(replace(options, witness_peer=Peer("http://127.0.0.1:9", "csk_a_b"), checkpoint_records=1))
    log.event(CHAT, Result("allowed"))
    wait_until(log.alarms)
    assert "peer 127.0.0.1" in log.alarms()[0]
    assert log.problem() is None
    log.close()


class Canned(BaseHTTPRequestHandler):
    """Something else that answers at the peer's address."""

    def do_GET(self) -> None:
        answer: tuple[int, bytes] = self.server.answers.pop(0)
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if answer[0] == 0:
            self.wfile.write(answer[1])
            return
        self.send_response(answer[0])
        self.send_header("Content-Length", str(len(answer[1])))
        self.end_headers()
        self.wfile.write(answer[1])

    do_POST = do_GET  # noqa: N815  (http.server looks for this name)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def answering(answers: list[tuple[int, bytes]], context: ssl.SSLContext | None = None) -> Iterator[int]:
    server = HTTPServer(("127.0.0.1", 0), Canned)
    server.answers = answers
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ([(200, b"<html>")], WitnessRefuses),
        ([(200, b"[]")], WitnessRefuses),
        ([(200, b'{"size": "3"}')], WitnessRefuses),
        ([(404, b'{"error": "no"}')], WitnessRefuses),
        ([(302, b"{}")], WitnessRefuses),
        ([(200, b'{"size": 0}'), (200, b"{}")], WitnessRefuses),
        ([(0, b"SMTP ready\r\n")], OSError),
    ],
)
def test_what_does_not_answer_like_a_witness_is_none(tmp_path, answers, error):
    with answering(answers) as port:
        witness = PeerWitness(Peer(f"http://localhost:{port}/prefix/", "csk_a_b"), [tmp_path])
        with pytest.raises(error):
            witness.publish(note_of(3))
        witness.close()


def test_a_log_that_is_not_here_cannot_be_shown_to_have_grown(tmp_path):
    with answering([(200, b'{"size": 2}')]) as port, pytest.raises(WitnessRefuses, match="cannot be shown"):
        PeerWitness(Peer(f"http://127.0.0.1:{port}", "csk_a_b"), [tmp_path]).publish(note_of(3))


def test_a_certificate_is_checked(tmp_path):
    chain, key = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    with answering([], context) as port:
        witness = PeerWitness(Peer(f"https://127.0.0.1:{port}", "csk_a_b", None), [])
        with pytest.raises(ssl.SSLCertVerificationError, match="self-signed"):
            witness.publish(note_of(3))
        witness = PeerWitness(Peer(f"https://127.0.0.1:{port}", "csk_a_b", chain), [])
        with pytest.raises(ssl.SSLCertVerificationError, match="not valid for"):  # it is for another name
            witness.publish(note_of(3))


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("http://other-host", "csk_a_b"),
        ("ftp://127.0.0.1", "csk_a_b"),
        ("https://", "csk_a_b"),
        ("https://h:port", "csk_a_b"),
        ("https://other-host", ""),
        ("https://other-host", "ey.j.w"),
    ],
)
def test_an_address_or_a_key_that_cannot_be_right_is_no_start(options, url, key):
    with pytest.raises(OperatorError, match="witness_peer_"):
        AuditLog.open(replace(options, witness_peer=Peer(url, key)))
    AuditLog.open(options).close()


# -- the proofs


def proves(options, growth: GrowthProofs, old: int, new: int) -> bool:
    leaves = [leaf_hash(line) for line in lines_of(options)]
    roots = root_of(leaves[:old]), root_of(leaves[:new])
    verify_consistency(old, new, growth.proof(old, new), *roots)
    return True


def test_proofs_over_segments_go_on_where_they_stopped_and_anywhere_else(options, time):
    daily = write_segments(options, time, 3)
    size = len(lines_of(daily))
    growth = GrowthProofs(options.directory)
    assert growth.proof(0, 5) == []
    assert all(proves(options, growth, old, old + 3) for old in range(1, size - 3, 3))
    assert all(proves(options, growth, old, new) for new in range(1, size + 1) for old in range(1, new + 1))


def test_records_that_are_gone_or_not_there_yet_prove_nothing(options, time):
    write_segments(options, time, 2)
    size = len(lines_of(options))
    with pytest.raises(ProofInvalid, match="2 records fewer"):
        GrowthProofs(options.directory).proof(1, size + 2)
    layout.segments(options.directory)[0].unlink()
    with pytest.raises(ProofInvalid, match="no longer holds"):
        GrowthProofs(options.directory).proof(1, size)


def test_the_second_device_is_read_where_the_first_does_not_hold_enough(options, time, tmp_path, replica):
    second = tmp_path / "second"
    write_some(replace(options, second_directory=second), time, 9)
    replica.pin(second)
    first_note, last_note = (Seen.read(second).notes[place][1] for place in (0, -1))
    segment = layout.segments(options.directory)[0]
    segment.write_bytes(segment.read_bytes()[:-400])
    with served(replica.app) as url:
        peer = Peer(url, replica.key)
        PeerWitness(peer, [options.directory]).publish(first_note)
        with pytest.raises(WitnessRefuses, match="records fewer"):
            PeerWitness(peer, [options.directory]).publish(last_note)
        PeerWitness(peer, [options.directory, second]).publish(last_note)
    assert verify_log(second, home_trust(second, witness=Seen.read(replica.directory))).exit_code == CLEAN
