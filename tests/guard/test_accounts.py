"""Accounts: names, roles, passwords and limits; every change is returned before and after."""

from __future__ import annotations

import pytest
from sqlalchemy import update

from chatsvc.errors import Conflict, InvalidRequest, NotFound
from chatsvc.guard.accounts.accounts import AccountUpdate
from chatsvc.guard.accounts.names import mapped_name, name_key, normal_name
from chatsvc.guard.accounts.roles import Roles, format_names, parse_names
from chatsvc.store.tables import Account

PASSWORD = "correct horse battery"


def test_an_added_account_is_listed_without_its_hash(guard):
    change = guard.accounts.add("ada", PASSWORD, ["user", "viewer", "user"])
    assert change.before is None
    assert change.after["roles"] == ["user", "viewer"]
    assert [account.as_dict() for account in guard.accounts.list_accounts()] == [change.after]
    assert guard.accounts.count() == 1
    assert "hash" not in str(change.as_details())


def test_a_name_is_there_once(guard, ada):
    with pytest.raises(Conflict):
        guard.accounts.add("ada", PASSWORD, [])


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a\n", "x" * 65, "\0", "a\ud800", "..%2f", "<b>"])
def test_a_name_of_other_characters_is_refused(guard, name):
    with pytest.raises(InvalidRequest) as caught:
        guard.accounts.add(name, PASSWORD, [])
    assert caught.value.param == "name"


def test_a_name_has_one_form_however_it_is_typed(guard):
    guard.accounts.add("Zoe\u0308", PASSWORD, [])
    assert guard.accounts.get("Zo\u00eb").name == normal_name("Zoe\u0308") == "Zo\u00eb"
    assert guard.accounts.add("王小明", PASSWORD, []).after["name"] == "王小明"


@pytest.mark.parametrize("filler", ["\u3164", "\uffa0", "\u115f", "\u1160"])
def test_a_letter_that_is_not_seen_makes_no_other_name(guard, ada, filler):
    with pytest.raises(Conflict):
        guard.accounts.add(f"ad{filler}a", PASSWORD, ["user"])
    assert normal_name(filler) is None
    assert name_key(f"A\u200b{filler}\u0301da") == name_key("áda")


def test_the_key_of_a_key_is_the_key_itself():
    for code in range(1, 0x20000):
        name = f"a{chr(code)}\u0301"
        assert name_key(name_key(name)) == name_key(name), hex(code)


def test_a_role_that_does_not_exist_is_refused(guard, ada):
    with pytest.raises(InvalidRequest, match="admin, auditor"):
        guard.accounts.add("bob", PASSWORD, ["root"])
    with pytest.raises(InvalidRequest):
        guard.accounts.set_roles("ada", ["root"])


def test_what_is_not_there_cannot_be_changed(guard):
    with pytest.raises(NotFound):
        guard.accounts.set_disabled("nobody", disabled=True)
    with pytest.raises(NotFound):
        guard.accounts.get("not a name")


def test_roles_limits_and_removal_say_before_and_after(guard, ada):
    assert guard.accounts.set_roles("ada", ["admin"]).as_details()["after"]["roles"] == ["admin"]
    change = guard.accounts.set_limits("ada", {"tokens_per_day": 5})
    assert (change.before["tokens_per_day"], change.after["tokens_per_day"]) == (None, 5)
    assert guard.accounts.remove("ada").after is None
    assert guard.accounts.list_accounts() == []


def test_disabling_ends_every_session_and_enabling_does_not_bring_them_back(guard, ada):
    sid, _ = guard.sessions.start(ada["id"], "127.0.0.1")
    assert guard.accounts.set_disabled("ada", disabled=True).after["disabled"]
    assert not guard.accounts.set_disabled("ada", disabled=False).after["disabled"]
    assert guard.sessions.state(sid).revoked_at is not None


def test_a_new_password_ends_every_session_but_the_calling_one(guard, ada):
    calling, _ = guard.sessions.start(ada["id"], "127.0.0.1")
    other, _ = guard.sessions.start(ada["id"], "127.0.0.1")
    guard.accounts.set_password("ada", "another good password", but_sid=calling)
    assert guard.sessions.state(calling).revoked_at is None
    assert guard.sessions.state(other).revoked_at is not None


def test_several_changes_are_made_together_or_not_at_all(guard, ada):
    sid, _ = guard.sessions.start(ada["id"], "127.0.0.1")
    change = guard.accounts.change("ada", AccountUpdate(roles=["viewer"], password="another good password"))
    assert change.after["roles"] == ["viewer"]
    assert guard.sessions.state(sid).revoked_at is not None
    assert guard.accounts.change("ada", AccountUpdate(disabled=True)).after["disabled"]
    assert guard.accounts.change("ada", AccountUpdate()).after["disabled"]
    for impossible in (AccountUpdate(roles=["root"], disabled=False), AccountUpdate(disabled=False, password="short")):
        with pytest.raises(InvalidRequest):
            guard.accounts.change("ada", impossible)
    assert guard.accounts.get("ada").disabled


def test_accounts_with_limits_of_their_own_are_listed(guard, ada):
    guard.accounts.add("bob", PASSWORD, [])
    assert guard.accounts.list_with_own_limits() == []
    guard.accounts.set_limits("bob", {"max_concurrent": 1})
    assert [account.name for account in guard.accounts.list_with_own_limits()] == ["bob"]


def test_the_password_of_a_directorys_account_is_not_ours_to_change(guard, ada):
    with guard.database.session() as session:
        session.execute(update(Account).values(source="ldap"))
    with pytest.raises(Conflict):
        guard.accounts.set_password("ada", "another good password")


def test_scopes_are_those_of_all_roles_together_and_a_lost_role_gives_none():
    roles = Roles({"user": ["chat"], "viewer": ["metrics"]})
    assert roles.scopes_of(["user", "viewer", "gone"]) == {"chat", "metrics"}
    assert roles.scopes_of([]) == frozenset()
    assert parse_names(format_names(["b", "a", "b"])) == ("a", "b")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("carol", "carol"),
        ("Pat O'Neil", "Pat_O_Neil"),
        ("CORP\\pat", "CORP_pat"),
        ("a|b#c", "a_b_c"),
        ("  pat@example.org ", "pat@example.org"),
        ("Zoe\u0308", "Zo\u00eb"),
        ("x" * 65, "x" * 55 + ".9537c5fd"),
        ("\ufdfa" * 64, "\ufdfa" * 4 + ".1ca2d556"),
        ("", None),
        ("'|#", None),
        ("\0", None),
    ],
)
def test_another_authoritys_name_becomes_an_accounts_name_by_the_stated_rule(given, name):
    found = mapped_name(given)
    assert found == name
    assert found is None or normal_name(found) == found
