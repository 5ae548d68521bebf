"""Who can write the log's files, but has none of its keys, forges nothing that verifies or that a start goes on with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chatsvc.audit import keys
from chatsvc.audit.format import layout
from chatsvc.audit.format.notes import Checkpoint, Signer, VerifierKey, format_checkpoint, format_vkey
from chatsvc.audit.format.record import decode, encode
from chatsvc.audit.format.replay import known_keys
from chatsvc.audit.format.tree import Frontier, leaf_hash
from chatsvc.audit.log import AuditLog
from chatsvc.audit.options import AuditOptions
from chatsvc.audit.verify.export import Span, export
from chatsvc.audit.verify.log import Trust, verify_log
from chatsvc.audit.verify.verdict import CLEAN, TAMPERED, UNKNOWN_KEY
from chatsvc.errors import OperatorError
from tests.audit.logs import NOON_US, Time, home_trust, last_segment, write_segments, write_some

Change = Callable[[bytes], bytes]


def alice_was_mallory(line: bytes) -> bytes:
    return line.replace(b'"actor":"alice"', b'"actor":"mallory"')


def rechained(options: AuditOptions, signer: Signer, *, sign: bool = True) -> None:
    """Every segment anew: other actors, right chain and tree, headers and checkpoints signed by the forger."""
    frontier, prev, note = Frontier(), leaf_hash(b""), None
    for segment in layout.segments(options.directory):
        lines = []
        for line in segment.read_bytes().splitlines():
            record = decode(alice_was_mallory(line)) | {"prev": prev.hex()}
            if record["stage"] == "segment":
                record["segment"]["checkpoint"] = note
                record["segment"]["tree"] = [each.hex() for each in frontier.hashes]
                record["segment"]["open"] = [
                    each | {"actor": "mallory"} if each["actor"] else each for each in record["segment"]["open"]
                ]
            lines.append(encode(record))
            prev = leaf_hash(lines[-1])
            frontier.append(prev)
        note = signer.sign(format_checkpoint(Checkpoint(signer.verifier_key.name, frontier.size, frontier.root())))
        segment.write_bytes(b"".join(line + b"\n" for line in lines))
        layout.checkpoints_of(segment).write_text(f"{note}\n" if sign else "")


@pytest.fixture
def owner(options: AuditOptions, time: Time) -> VerifierKey:
    """The key of an honest log of three segments whose first sealing key the auditor took away."""
    write_segments(options, time, 3)
    for path in keys.initial_seals(options.keys):
        keys.move_to_auditor(path, options.keys.parent / "auditor")
    assert verify_log(options.directory, home_trust(options)).exit_code == CLEAN
    return known_keys(options.directory)[0]


@pytest.fixture
def forger(owner: VerifierKey) -> Signer:
    return Signer(owner.name, Ed25519PrivateKey.generate())


@pytest.mark.parametrize("how", ["replaced", "extended", "put in front"])
def test_a_log_signed_with_a_key_that_the_forger_put_beside_it(
    options: AuditOptions, owner: VerifierKey, forger: Signer, how: str
) -> None:
    rechained(options, forger)
    own, his = format_vkey(owner), format_vkey(forger.verifier_key)
    texts = {"replaced": [his], "extended": [own, his], "put in front": [his, own]}
    (options.directory / layout.VKEY).write_text("".join(f"{line}\n" for line in texts[how]))
    for trust in (home_trust(options), Trust(keys=(owner,)), Trust()):
        verdict = verify_log(options.directory, trust)
        assert verdict.exit_code == TAMPERED
        assert f"{owner.name} {forger.verifier_key.fingerprint}" in verdict.unvouched
        assert forger.verifier_key.fingerprint in verdict.message
    with pytest.raises(OperatorError, match="not in keys/") as refused:
        AuditLog.open(options)
    assert forger.verifier_key.fingerprint in refused.value.message


def test_a_key_line_alone_is_enough_to_say_no(options: AuditOptions, owner: VerifierKey, forger: Signer) -> None:
    """Nothing is signed with it yet; it waits for the night in which something will be."""
    with (options.directory / layout.VKEY).open("a") as file:
        file.write(format_vkey(forger.verifier_key) + "\n")
    assert verify_log(options.directory, home_trust(options)).exit_code == TAMPERED
    with pytest.raises(OperatorError, match="not in keys/"):
        AuditLog.open(options)
    with pytest.raises(OperatorError, match="not in keys/"):  # nothing of it is signed for an auditor either
        export(options.directory, options.keys, Span(0, NOON_US * 2, NOON_US))


@pytest.mark.parametrize("with_vkey", [True, False])
def test_a_log_signed_with_a_key_that_is_named_nowhere(options: AuditOptions, forger: Signer, with_vkey: bool) -> None:
    rechained(options, forger)
    if not with_vkey:
        (options.directory / layout.VKEY).unlink()
    assert verify_log(options.directory, home_trust(options)).exit_code == UNKNOWN_KEY
    with pytest.raises(OperatorError, match="no known key"):
        AuditLog.open(options)


def test_a_log_without_checkpoints_is_not_signed_by_the_next_start(
    options: AuditOptions, time: Time, forger: Signer
) -> None:
    """A start signs what it goes on with, so it must not go on with what only a forger's chain holds together."""
    rechained(options, forger, sign=False)
    assert verify_log(options.directory, home_trust(options)).exit_code != CLEAN
    with pytest.raises(OperatorError, match="damaged"):
        AuditLog.open(options, clock=time.clock())


def test_a_tail_behind_the_last_checkpoint_must_carry_the_present_seal(options: AuditOptions, time: Time) -> None:
    write_some(options, time)  # one segment, one epoch
    frontier_signer = Signer(known_keys(options.directory)[0].name, Ed25519PrivateKey.generate())
    rechained(options, frontier_signer, sign=False)
    with pytest.raises(OperatorError, match="seal is not right"):
        AuditLog.open(options, clock=time.clock())


def test_records_of_past_epochs_must_be_covered_at_a_start(options: AuditOptions, time: Time) -> None:
    short = replace(options, epoch_s=60)
    write_some(short, time)
    time.pass_us(100_000_000)
    write_some(short, time)
    notes = layout.checkpoints_of(last_segment(short))
    notes.write_bytes(b"")
    with pytest.raises(OperatorError, match="the key of its sealing epoch is gone"):
        AuditLog.open(short, clock=time.clock())


def test_the_operator_can_trust_a_key_that_was_replaced_long_ago(
    options: AuditOptions, time: Time, tmp_path: Path
) -> None:
    """A home of before audit-signing.pub, whose key had been replaced already."""
    write_some(options, time)
    (tmp_path / "keys" / "audit-signing.pem").rename(tmp_path / "old.pem")
    keys.signing_key(options.keys, create=True)
    write_some(options, time)
    old, new = known_keys(options.directory)
    (options.keys / "audit-signing.pub").unlink()
    verdict = verify_log(options.directory, home_trust(options))
    assert (verdict.exit_code, verdict.unvouched) == (TAMPERED, (f"{old.name} {old.fingerprint}",))
    assert verdict.vouched == (f"{new.name} {new.fingerprint}",)
    with pytest.raises(OperatorError, match=r"keys/audit-signing.pub"):
        AuditLog.open(options, clock=time.clock())
    (options.keys / "audit-signing.pub").write_text(format_vkey(old) + "\n")
    write_some(options, time)
    assert verify_log(options.directory, home_trust(options)).exit_code == CLEAN
    shutil.copy(options.keys / "audit-signing.pub", tmp_path / "kept")
    assert (tmp_path / "kept").read_text().count("\n") == 2
