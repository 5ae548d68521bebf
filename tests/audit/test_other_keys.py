"""A key vouches for the log it belongs to and for no other, however many keys somebody trusts."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chatsvc.audit import keys
from chatsvc.audit.checkpoint import Checkpoint, NoteInvalid, Signer, format_checkpoint, format_vkey, split_notes
from chatsvc.audit.options import AuditOptions
from chatsvc.audit.replay import known_keys
from chatsvc.audit.verdict import CLEAN, TAMPERED
from chatsvc.audit.verify import Trust, verify_log
from chatsvc.audit.witness import checkpoint_in
from chatsvc.audit.witnessed import Submission, Witnessed
from tests.audit.logs import Time, write_some


def test_a_witness_takes_no_head_of_one_log_signed_by_anothers_key(tmp_path: Path) -> None:
    one, other = (Signer(f"chatsvc.example/{name}", Ed25519PrivateKey.generate()) for name in ("aaaa", "bbbb"))
    (tmp_path / "keys").write_text(f"{format_vkey(one.verifier_key)}\n{format_vkey(other.verifier_key)}\n")
    witness = Witnessed(tmp_path / "held", tmp_path / "keys")
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
