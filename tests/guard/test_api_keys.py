"""API keys: shown once, hashed, limited to the account's scopes, rotated with a grace period, revoked at once."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import select

from chatsvc.errors import AuthenticationFailed, Conflict, InvalidRequest, NotFound
from chatsvc.guard.credentials.api_keys import NewKey
from chatsvc.store.tables import ApiKey


@pytest.fixture
def key(guard, ada):
    return guard.api_keys.create(NewKey("ada", "ci", ["chat"]))[0]


def id_of(key):
    return key.split("_", 2)[1]


def refused(guard, text):
    with pytest.raises(AuthenticationFailed) as caught:
        guard.api_keys.check(text)
    assert caught.value.message == AuthenticationFailed.message


def test_a_key_has_the_agreed_form_and_only_its_hash_is_stored(guard, key):
    assert re.fullmatch(r"csk_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", key)
    with guard.database.reading() as session:
        row = session.scalar(select(ApiKey))
    assert key.split("_", 2)[2] not in str(vars(row))


def test_a_valid_key_belongs_to_its_account(guard, key):
    row = guard.api_keys.check(key)
    assert row.name == "ada"
    assert guard.api_keys.scopes_of(row) == {"chat"}


@pytest.mark.parametrize("change", [lambda k: k[:-1], lambda k: k + "A", lambda k: k[:-1] + "!", lambda k: k.upper(),
                                    lambda k: k.replace("csk_", "csk_0"), lambda k: "", lambda k: "csk__", lambda k: k + "\n",
                                    lambda k: k.replace("_", "", 1), lambda k: "csk_' OR 1=1_" + "x" * 40])  # fmt: skip
def test_anything_else_is_refused(guard, key, change):
    refused(guard, change(key))


def test_a_key_never_does_more_than_its_account_may(guard, key):
    with pytest.raises(Conflict, match="no scope admin"):
        guard.api_keys.create(NewKey("ada", "too much", ["chat", "admin"]))
    guard.accounts.set_roles("ada", [])
    assert guard.api_keys.scopes_of(guard.api_keys.check(key)) == frozenset()


@pytest.mark.parametrize(
    ("name", "scopes"), [("", ["chat"]), ("x" * 129, ["chat"]), ("a\nb", ["chat"]), ("a", []), ("a", ["fly"])]
)
def test_a_key_that_cannot_be_is_refused(guard, ada, name, scopes):
    with pytest.raises(InvalidRequest):
        guard.api_keys.create(NewKey("ada", name, scopes))


def test_an_unknown_key_is_refused(guard):
    with pytest.raises(NotFound):
        guard.api_keys.create(NewKey("nobody", "ci", ["chat"]))


def test_an_expired_key_is_refused(guard, ada, clock):
    text, _ = guard.api_keys.create(NewKey("ada", "ci", ["chat"], expires_at=clock() + 10))
    assert guard.api_keys.check(text)
    clock.advance(10)
    refused(guard, text)


def test_an_expired_key_works_again_with_a_later_expiry_and_a_revoked_one_never(guard, key, clock):
    guard.api_keys.set_limits(id_of(key), {"expires_at": clock() + 10})
    clock.advance(10)
    refused(guard, key)
    guard.api_keys.set_limits(id_of(key), {"expires_at": None, "tokens_per_day": 5})
    assert guard.api_keys.check(key).key_tokens_per_day == 5
    guard.api_keys.revoke(id_of(key))
    assert guard.api_keys.set_limits(id_of(key), {"expires_at": clock() + 10}).after["revoked"]
    refused(guard, key)


def test_a_revoked_key_is_refused_and_stays_so(guard, key):
    assert guard.api_keys.revoke(id_of(key)).after["revoked"]
    refused(guard, key)
    assert guard.api_keys.revoke(id_of(key)).before["revoked"]


def test_the_key_of_a_disabled_account_is_refused(guard, key):
    guard.accounts.set_disabled("ada", disabled=True)
    refused(guard, key)


def test_after_a_rotation_both_work_for_the_grace_and_then_only_the_new_one(guard, key, clock):
    new, _ = guard.api_keys.rotate(id_of(key), grace_s=60)
    assert guard.api_keys.check(key)
    assert guard.api_keys.check(new)
    clock.advance(60)
    refused(guard, key)
    assert guard.api_keys.check(new)


def test_a_clock_that_was_years_ahead_keeps_no_old_secret_alive(guard, key, clock):
    clock.advance(126_144_000)
    new, _ = guard.api_keys.rotate(id_of(key), grace_s=60)
    assert guard.api_keys.check(key)
    clock.advance(-126_144_000)
    refused(guard, key)
    assert guard.api_keys.check(new)  # last_used_at is stored again from now on
    with guard.database.reading() as session:
        assert session.scalar(select(ApiKey.last_used_at)) == clock()


def test_a_key_that_is_not_there_cannot_be_changed(guard):
    with pytest.raises(NotFound):
        guard.api_keys.revoke("nothere")
    with pytest.raises(NotFound):
        guard.api_keys.set_limits("nothere", {"tokens_per_day": 5})


def test_its_last_use_is_remembered_to_the_minute(guard, key, clock):
    def last_used_at():
        return guard.api_keys.list_keys("ada")[0].last_used_at

    assert last_used_at() is None
    guard.api_keys.check(key)
    first = last_used_at()
    clock.advance(30)
    guard.api_keys.check(key)
    assert last_used_at() == first
    clock.advance(30)
    guard.api_keys.check(key)
    assert last_used_at() == first + 60


def test_keys_are_listed_without_secrets(guard, key):
    assert [view.as_dict()["name"] for view in guard.api_keys.list_keys()] == ["ci"]
    assert guard.api_keys.list_keys("bob") == []
