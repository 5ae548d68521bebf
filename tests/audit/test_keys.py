"""The log's keys: which are given to an auditor, and which a home trusts."""

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
    assert {key.public for key in given} == keys.trusted_keys(options.keys)


def test_a_first_sealing_key_is_moved_once_and_never_over_another(options, tmp_path):
    AuditLog.open(options).close()
    (waiting,) = keys.initial_seals(options.keys)
    (tmp_path / "auditor").mkdir()
    (tmp_path / "auditor" / waiting.name).write_text("of somebody else")
    with pytest.raises(OperatorError, match="there already"):
        keys.move_to_auditor(waiting, tmp_path / "auditor")
    assert keys.initial_seals(options.keys) == [waiting]
    kept = keys.move_to_auditor(waiting, tmp_path / "stick")
    assert parse_seal_key(kept.read_text()).epoch == 0
    assert keys.initial_seals(options.keys) == []


def test_a_home_trusts_its_signing_key_without_a_list_and_its_list_without_the_key(options):
    AuditLog.open(options).close()
    own = keys.trusted_keys(options.keys)
    (options.keys / keys.PUBLIC_KEYS).rename(options.keys / "list")
    assert keys.trusted_keys(options.keys) == own
    (options.keys / "list").rename(options.keys / keys.PUBLIC_KEYS)
    (options.keys / "audit-signing.pem").unlink()
    assert keys.trusted_keys(options.keys) == own
