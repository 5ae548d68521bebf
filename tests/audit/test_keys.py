"""The log's keys: what is given to an auditor, and what a home vouches for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chatsvc.audit import keys
from chatsvc.audit.format.ratchet import parse_seal_key
from chatsvc.audit.log import AuditLog
from chatsvc.errors import OperatorError


def test_the_auditor_is_given_the_keys_of_every_log_of_the_home(options):
    for directory in (options.directory, options.directory / "commands"):
        AuditLog.open(replace(options, directory=directory)).close()
    given = keys.public_keys(options.keys, options.directory)
    assert len({key.name for key in given}) == 2
    assert {key.public for key in given} == keys.vouched(options.keys)


def test_a_first_sealing_key_is_moved_once_and_never_over_another(options, tmp_path):
    AuditLog.open(options).close()
    (waiting,) = keys.initial_seals(options.keys)
    (tmp_path / "auditor").mkdir()
    (tmp_path / "auditor" / waiting.name).write_text("of somebody else")
    with pytest.raises(OperatorError, match="there already"):
        keys.take_away(waiting, tmp_path / "auditor")
    assert keys.initial_seals(options.keys) == [waiting]
    kept = keys.take_away(waiting, tmp_path / "stick")
    assert parse_seal_key(kept.read_text()).epoch == 0
    assert keys.initial_seals(options.keys) == []


def test_a_home_vouches_for_its_signing_key_before_there_was_a_list_and_for_its_list_without_the_key(options):
    AuditLog.open(options).close()
    own = keys.vouched(options.keys)
    (options.keys / keys.PUBLIC_KEYS).rename(options.keys / "list")
    assert keys.vouched(options.keys) == own
    (options.keys / "list").rename(options.keys / keys.PUBLIC_KEYS)
    (options.keys / "audit-signing.pem").unlink()
    assert keys.vouched(options.keys) == own
