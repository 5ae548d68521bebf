"""C2SP signed notes and checkpoints."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chatsvc.audit.format.notes import (
    Checkpoint,
    KeyUnknown,
    NoteInvalid,
    Signer,
    VerifierKey,
    format_checkpoint,
    format_note,
    format_vkey,
    open_note,
    parse_checkpoint,
    parse_note,
    parse_vkey,
    split_notes,
)

# From the documentation of Go's golang.org/x/mod/sumdb/note, whose format this is.
GO_VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_NOTE = (
    "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
SIGNER = Signer("log.example/a", Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
NOTE = SIGNER.sign(format_checkpoint(Checkpoint("log.example/a", 7, bytes(32))))


def test_a_note_made_by_go_verifies():
    assert open_note(GO_NOTE, [parse_vkey(GO_VKEY)]).startswith("If you think")


def test_a_checkpoint_comes_back_out_of_its_note():
    assert parse_checkpoint(open_note(NOTE, [SIGNER.verifier_key])) == Checkpoint("log.example/a", 7, bytes(32))


def test_formats_and_parsers_are_pairs():
    assert format_note(parse_note(NOTE)) == NOTE
    assert parse_vkey(format_vkey(SIGNER.verifier_key)) == SIGNER.verifier_key


def test_every_single_bit_change_of_a_note_is_refused():
    data, keys = NOTE.encode(), [SIGNER.verifier_key]
    for place in range(len(data) * 8):
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises((NoteInvalid, KeyUnknown, UnicodeDecodeError)):
            open_note(changed.decode(), keys)


def test_a_note_of_an_unknown_key_is_told_apart_from_a_wrong_one():
    stranger = Signer("log.example/a", Ed25519PrivateKey.generate())
    with pytest.raises(KeyUnknown):
        open_note(NOTE, [stranger.verifier_key])
    with pytest.raises(NoteInvalid, match="wrong"):
        open_note(NOTE.replace("\n7\n", "\n8\n"), [SIGNER.verifier_key])


def test_signatures_of_strangers_beside_a_known_one_are_passed_over():
    other = Signer("witness.example", Ed25519PrivateKey.generate())
    text = NOTE.partition("\n\n")[0] + "\n"
    both = NOTE + other.sign(text).rpartition("\n\n")[2]
    assert open_note(both, [SIGNER.verifier_key]) == open_note(both, [other.verifier_key]) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "log\n1\n",
        f"log\n01\n{base64.b64encode(bytes(32)).decode()}\n",
        f"log\n-1\n{base64.b64encode(bytes(32)).decode()}\n",
        f"log\n٣\n{base64.b64encode(bytes(32)).decode()}\n",
        f"\n1\n{base64.b64encode(bytes(32)).decode()}\n",
        f"log\n1\n{base64.b64encode(bytes(31)).decode()}\n",
        f"log\n1\n{base64.b64encode(bytes(32)).decode()}\nextension\n",
        "log\n1\nnot base64!\n",
    ],
)
def test_a_text_that_is_no_checkpoint_is_refused(text):
    with pytest.raises(NoteInvalid):
        parse_checkpoint(text)


@pytest.mark.parametrize(
    "note",
    [
        "",
        "text\n",
        "text\n\n— name AAAA",
        "text\n\nname AAAAAAAA\n",
        "text\n\n— name\n",
        "text\n\n— na+me AAAAAAAA\n",
        "text\n\n— name AAAA\n",
        "te\x01xt\n\n— name AAAAAAAA\n",
        "text\n\n—  AAAAAAAA\n",
    ],
)
def test_a_text_that_is_no_note_is_refused(note):
    with pytest.raises(NoteInvalid):
        parse_note(note)


@pytest.mark.parametrize(
    "vkey",
    ["", "name", "name+00000000+AAAA", GO_VKEY.replace("c74f20a3", "c74f20a4"), GO_VKEY.replace("Peter", "Pe ter")],
)
def test_a_text_that_is_no_verifier_key_is_refused(vkey):
    with pytest.raises(NoteInvalid):
        parse_vkey(vkey)


def test_a_file_of_notes_falls_into_notes_and_a_torn_rest():
    data = (NOTE + "\n" + NOTE + "\n").encode()
    assert split_notes(data) == ([NOTE, NOTE], b"")
    for cut in range(1, len(NOTE.encode()) + 1):
        notes, torn = split_notes(data[:-cut])
        assert notes == [NOTE]
        assert data[:-cut] == NOTE.encode() + b"\n" + torn
    with pytest.raises(NoteInvalid):
        split_notes(b"\xff\n\n\xff\n\n")


def test_key_ids_depend_on_the_name():
    assert VerifierKey("a", bytes(32)).key_id != VerifierKey("b", bytes(32)).key_id
