"""Records of commands: stored in the act's transaction, moved into the log later, never lost."""

from __future__ import annotations

import pytest

from chatsvc.errors import AuditUnavailable, NotFound
from chatsvc.guard.assembly import assemble
from chatsvc.guard.credentials.api_keys import NewKey
from chatsvc.guard.outbox import Outbox, put_into_outbox

PASSWORD = "correct horse battery"


@pytest.fixture
def by_command(options, clock):
    guard = assemble(options, on_change=put_into_outbox("cli:root", clock=clock), clock=clock)
    yield guard
    guard.close()


def drained(guard):
    records = []
    while Outbox(guard.database, lambda *record: records.append(record)).drain():
        pass
    return records


def test_every_act_by_command_is_recorded_with_before_and_after(by_command, clock):
    guard = by_command
    account_id = guard.accounts.add("ada", PASSWORD, ["user"]).after["id"]
    guard.accounts.set_limits("ada", {"tokens_per_day": 5})
    sid, _ = guard.sessions.start(account_id, "127.0.0.1")
    guard.sessions.end(sid, "command")
    guard.sessions.end_all_of(account_id, "command")
    guard.rotate_signing_key()
    _, made = guard.api_keys.create(NewKey("ada", "ci", ["chat"]))
    guard.api_keys.set_limits(made.after["id"], {"tokens_per_day": 7})
    guard.accounts.remove("ada")
    records = drained(guard)
    assert [action for action, _, _ in records] == [
        "admin.account.create",
        "admin.account.limits",
        "admin.session.end",
        "admin.session.end",
        "admin.signing_key.rotate",
        "admin.key.create",
        "admin.key.limits",
        "admin.account.remove",
    ]
    assert {actor for _, actor, _ in records} == {"cli:root"}
    assert records[1][2]["before"]["tokens_per_day"] is None
    assert records[1][2]["after"]["tokens_per_day"] == 5
    assert records[1][2]["at"] == clock()
    assert (records[6][2]["before"]["tokens_per_day"], records[6][2]["after"]["tokens_per_day"]) == (None, 7)
    assert PASSWORD not in str(records)


def test_an_act_that_fails_leaves_no_record(by_command):
    with pytest.raises(NotFound):
        by_command.accounts.set_roles("nobody", [])
    assert drained(by_command) == []


def test_what_the_log_refuses_stays(by_command):
    by_command.accounts.add("ada", PASSWORD, [])

    def refuse(*_):
        raise AuditUnavailable

    with pytest.raises(AuditUnavailable):
        Outbox(by_command.database, refuse).drain()
    assert len(drained(by_command)) == 1
    assert drained(by_command) == []


def test_it_is_drained_at_most_once_a_second_and_by_one_thread(by_command, clock):
    records = []
    outbox = Outbox(by_command.database, lambda *record: records.append(record), clock=clock)
    by_command.accounts.add("ada", PASSWORD, [])
    outbox.drain_if_due()
    by_command.accounts.add("bob", PASSWORD, [])
    outbox.drain_if_due()
    assert len(records) == 1
    clock.advance(1)
    outbox._busy.acquire()
    outbox.drain_if_due()
    assert len(records) == 1
    outbox._busy.release()
    outbox.drain_if_due()
    assert len(records) == 2
