"""A key is trusted for its own log only, however many keys are trusted."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chatsvc.audit import keys
from chatsvc.audit.format.notes import Checkpoint, NoteInvalid, Signer, format_checkpoint, format_vkey, split_notes
from chatsvc.audit.format.record import encode
from chatsvc.audit.format.replay import known_keys
from chatsvc.audit.options import AuditOptions
from chatsvc.audit.verify.export import Span, export, signature_text
from chatsvc.audit.verify.export_check import verify_export
from chatsvc.audit.verify.log import Trust, verify_log
from chatsvc.audit.verify.verdict import CLEAN, TAMPERED, UNKNOWN_KEY
from chatsvc.audit.witness.held_heads import HeldHeads, Submission
from chatsvc.audit.witness.seen import checkpoint_in
from tests.audit.logs import NOON_US, Time, home_trust, write_some


def test_a_witness_takes_no_head_of_one_log_signed_by_anothers_key(tmp_path: Path) -> None:
    one, other = (Signer(f"chatsvc.example/{name}", Ed25519PrivateKey.generate()) for name in ("aaaa", "bbbb"))
    (tmp_path / "keys").write_text(f"{format_vkey(one.verifier_key)}\n{format_vkey(other.verifier_key)}\n")
    witness = HeldHeads(tmp_path / "held", tmp_path / "keys")
    root = hashlib.sha256(b"a tree of four").digest()
    witness.take(Submission(one.sign(format_checkpoint(Checkpoint("chatsvc.example/aaaa", 4, root))), 0, []))
    leaf = hashlib.sha256(b"\0invented").digest()
    grown = Checkpoint("chatsvc.example/aaaa", 5, hashlib.sha256(b"\1" + root + leaf).digest())
    with pytest.raises(NoteInvalid, match="under another name"):
        witness.take(Submission(other.sign(format_checkpoint(grown)), 4, [leaf]))
    held = witness.head("chatsvc.example/aaaa")
    assert held is not None
    assert held.size == 4
    witness.take(Submission(one.sign(format_checkpoint(grown)), 4, [leaf]))


def test_checkpoints_of_another_log_cover_nothing_here(options: AuditOptions, time: Time, tmp_path: Path) -> None:
    write_some(options, time)
    theirs = replace(options, directory=tmp_path / "their log", keys=tmp_path / "their keys")
    write_some(theirs, time)
    trust = Trust(keys=tuple(key for log in (options, theirs) for key in known_keys(log.directory)))
    assert verify_log(options.directory, trust).exit_code == CLEAN
    name = known_keys(theirs.directory)[0].name
    signer = Signer(name, keys.signing_key(theirs.keys, create=False))
    for path in options.directory.glob("*.checkpoints"):
        notes, _ = split_notes(path.read_bytes())
        held = [checkpoint_in(note) for note in notes]
        forged = [signer.sign(format_checkpoint(Checkpoint(name, one.size, one.root))) for one in held]
        path.write_text("".join(f"{note}\n" for note in forged))
    verdict = verify_log(options.directory, trust)
    assert verdict.exit_code == TAMPERED
    assert "of another log" in verdict.message


@pytest.fixture
def theirs(options: AuditOptions, time: Time, tmp_path: Path) -> AuditOptions:
    """Another log with a key of its own, beside ours."""
    write_some(options, time)
    other = replace(options, directory=tmp_path / "their log", keys=tmp_path / "their keys")
    write_some(other, time)
    return other


def signer_of(options: AuditOptions) -> Signer:
    return Signer(known_keys(options.directory)[0].name, keys.signing_key(options.keys, create=False))


def keys_of(*logs: AuditOptions) -> Trust:
    return Trust(keys=tuple(key for log in logs for key in known_keys(log.directory)))


def exported(options: AuditOptions) -> list[bytes]:
    """The lines of an export of everything, without the signature."""
    lines = b"".join(export(options.directory, options.keys, Span(0, NOON_US * 2, NOON_US))).splitlines(keepends=True)
    assert lines[-1].startswith(b'{"signature"')
    return lines[:-1]


def signed(lines: list[bytes], signer: Signer, path: Path, name: str = "") -> Path:
    """The export with a signature by whoever it is, over whatever the lines are."""
    text = signature_text(name or signer.verifier_key.name, hashlib.sha256(b"".join(lines)).digest())
    path.write_bytes(b"".join([*lines, encode({"signature": signer.sign(text)}) + b"\n"]))
    return path


def test_an_export_is_signed_by_a_key_of_each_log_in_it(
    options: AuditOptions, theirs: AuditOptions, tmp_path: Path
) -> None:
    lines, trust = exported(options), keys_of(options, theirs)
    assert verify_export(signed(lines, signer_of(options), tmp_path / "export"), trust).exit_code == CLEAN
    verdict = verify_export(signed(lines, signer_of(theirs), tmp_path / "export"), trust)
    assert verdict.exit_code == UNKNOWN_KEY
    assert "every log in it" in verdict.message
    # Both logs in one file: neither key may say that this is all there was of both.
    head, *theirs_too = exported(theirs)
    for signer in (signer_of(options), signer_of(theirs)):
        path = signed([head, *lines[1:], *theirs_too], signer, tmp_path / "export")
        assert verify_export(path, trust).exit_code == UNKNOWN_KEY


def test_the_name_in_an_exports_signature_is_the_one_that_signed(
    options: AuditOptions, theirs: AuditOptions, tmp_path: Path
) -> None:
    ours, their = signer_of(options), signer_of(theirs)
    path = signed(exported(options), ours, tmp_path / "export", name=their.verifier_key.name)
    assert verify_export(path, keys_of(options, theirs)).exit_code == UNKNOWN_KEY


def test_a_checkpoint_of_another_log_ends_no_stretch_of_an_export(
    options: AuditOptions, theirs: AuditOptions, tmp_path: Path
) -> None:
    lines = [line for line in exported(options) if not line.startswith(b'{"checkpoint"')]
    end, their = json.loads(lines.pop())["end"], signer_of(theirs)
    held = checkpoint_in(end["checkpoint"])
    note = their.sign(format_checkpoint(Checkpoint(their.verifier_key.name, held.size, held.root)))
    path = signed([*lines, encode({"end": end | {"checkpoint": note}}) + b"\n"], their, tmp_path / "export")
    verdict = verify_export(path, keys_of(options, theirs))
    assert verdict.exit_code == TAMPERED
    assert "of another log" in verdict.message


def test_an_export_after_the_key_was_replaced_is_signed_for_every_log_in_it(
    options: AuditOptions, time: Time, tmp_path: Path
) -> None:
    write_some(options, time)
    write_some(replace(options, directory=options.directory / "commands"), time)
    old = options.keys / "audit-signing.pem"
    old.rename(tmp_path / "old.pem")
    keys.signing_key(options.keys, create=True)
    write_some(options, time)  # the other log has not seen the new key yet
    path = tmp_path / "export"
    path.write_bytes(b"".join(export(options.directory, options.keys, Span(0, NOON_US * 2, NOON_US))))
    assert verify_export(path, home_trust(options)).exit_code == CLEAN
