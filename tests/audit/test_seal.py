"""The ratchet: forward only."""

from __future__ import annotations

import pytest

from chatsvc.audit.format.ratchet import Epochs, SealInvalid, SealKey, format_seal_key, parse_seal_key

FIRST = SealKey("log", Epochs(1000, 60), 0, bytes(32))


def test_the_ratchet_gives_the_same_key_by_steps_and_by_leaps():
    assert FIRST.forward(5) == FIRST.forward(2).forward(5)
    assert len({FIRST.forward(epoch).mac_key for epoch in range(50)}) == 50


def test_the_ratchet_does_not_turn_back():
    with pytest.raises(AssertionError):
        FIRST.forward(5).forward(4)


def test_epochs_cut_time():
    epochs = Epochs(1000, 60)
    assert [epochs.at(seconds * 1_000_000) for seconds in (999, 1000, 1059, 1060)] == [-1, 0, 0, 1]


def test_a_sealing_key_comes_back_from_its_line():
    assert parse_seal_key(format_seal_key(FIRST.forward(3))) == FIRST.forward(3)


@pytest.mark.parametrize(
    "change", [("v1", "v2"), (" 60 ", " 0 "), (" 60 ", " x "), ("00\n", "\n"), ("\n", " more\n"), (" 1000 ", " 01000 ")]
)
def test_another_line_is_no_sealing_key(change):
    with pytest.raises(SealInvalid):
        parse_seal_key(format_seal_key(FIRST).replace(*change))
