"""Logging in against a real slapd: bind, groups to roles, and nothing that a directory's quirks could open."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from chatsvc.errors import AuthenticationFailed, OperatorError, StoreUnavailable
from chatsvc.guard.login import Login
from chatsvc.guard.outbox import Outbox
from tests.servers import DIRECTORY_PASSWORD as PASSWORD
from tests.servers import free_port

pytest.importorskip("ldap3", reason="the extra 'directory' is not installed")

from chatsvc.guard.ldap import LdapDirectory, LdapOptions

HERE = ip_address("127.0.0.1")


@pytest.fixture
def layout(slapd):
    return LdapOptions(
        url=f"ldaps://localhost:{slapd.tls}",
        user_base="ou=people,dc=example,dc=org",
        group_base="ou=groups,dc=example,dc=org",
        bind_dn="cn=chatsvc,dc=example,dc=org",
        bind_password="the service's password",
        ca_file=slapd.folder / "server.pem",
        roles={"chatters": "user", "cn=operators,ou=groups,dc=example,dc=org": "operator", "others": "no such role"},
        timeout_s=3,
    )


@pytest.fixture
def directory(layout, guard):
    return LdapDirectory(layout, guard.vouched)


@pytest.fixture
def login(directory, guard):
    return Login(guard.database, guard.passwords, guard.throttle, directory)


def refused(login, name, password=PASSWORD):
    with pytest.raises(AuthenticationFailed):
        login.verify(name, password, HERE)


def test_an_entry_of_the_directory_logs_in_and_its_groups_become_roles(login, guard):
    found = login.verify("carol", PASSWORD, HERE)
    account = guard.accounts.get("carol")
    assert (account.id, account.source) == (found.account_id, "ldap")
    assert account.roles == ("operator", "user")
    assert login.verify("carol", PASSWORD, HERE) == found


def test_a_made_account_and_changed_roles_are_recorded(directory, layout, guard):
    records = []
    for _ in range(2):
        directory.verify("carol", PASSWORD)
    LdapDirectory(replace(layout, roles={}), guard.vouched).verify("carol", PASSWORD)
    Outbox(guard.database, lambda *record: records.append(record)).drain()
    assert [(action, actor) for action, actor, _ in records] == [("ldap.account", "directory")] * 2
    assert records[0][2]["before"] is None
    assert (records[1][2]["before"]["roles"], records[1][2]["after"]["roles"]) == (["operator", "user"], [])


def test_roles_are_those_of_today(directory, layout, guard):
    directory.verify("carol", PASSWORD)
    LdapDirectory(replace(layout, roles={"chatters": "viewer"}), guard.vouched).verify("carol", PASSWORD)
    assert guard.accounts.get("carol").roles == ("viewer",)
    LdapDirectory(replace(layout, group_base=""), guard.vouched).verify("carol", PASSWORD)
    assert guard.accounts.get("carol").roles == ()


def test_who_is_in_no_mapped_group_logs_in_without_a_role(directory, guard):
    assert directory.verify("dave", PASSWORD)
    assert guard.accounts.get("dave").roles == ()


@pytest.mark.parametrize(
    ("name", "password"),
    [
        ("carol", "a wrong password"),
        ("carol", ""),
        ("carol", " "),
        ("nobody", PASSWORD),
        ("*", PASSWORD),
        ("car*", PASSWORD),
        ("carol)(uid=*", PASSWORD),
        ("carol)(|(uid=*)", PASSWORD),
        ("carol\\2a", PASSWORD),
        ("twin", PASSWORD),
        ("Carol,ou=people", PASSWORD),
    ],
)
def test_anything_else_is_refused(directory, guard, name, password):
    assert directory.verify(name, password) is None
    assert guard.accounts.list_accounts() == []


def test_a_disabled_account_stays_out_whatever_the_directory_says(login, guard):
    login.verify("carol", PASSWORD, HERE)
    guard.accounts.set_disabled("carol", disabled=True)
    refused(login, "carol")


def test_a_local_account_is_not_opened_by_a_name_in_the_directory(login, directory, guard):
    guard.accounts.add("carol", "the local account's password", ["admin"])
    refused(login, "carol")
    assert directory.verify("carol", PASSWORD) is None
    assert login.verify("carol", "the local account's password", ip_address("127.0.0.2"))
    assert guard.accounts.get("carol").roles == ("admin",)


def test_the_local_administrator_comes_in_while_the_directory_is_down(layout, guard):
    guard.accounts.add("admin", "the administrator's password", ["admin"])
    down = LdapDirectory(replace(layout, url=f"ldaps://localhost:{free_port()}"), guard.vouched)
    login = Login(guard.database, guard.passwords, guard.throttle, down)
    assert login.verify("admin", "the administrator's password", HERE)
    with pytest.raises(StoreUnavailable):
        login.verify("carol", PASSWORD, HERE)
    with pytest.raises(StoreUnavailable):
        LdapDirectory(replace(layout, url="ldaps://no-such-host.invalid"), guard.vouched).verify("carol", PASSWORD)


def test_start_tls_and_plain_on_loopback_work_too(layout, slapd, guard):
    plain = replace(layout, url=f"ldap://localhost:{slapd.plain}")
    assert LdapDirectory(plain, guard.vouched).verify("carol", PASSWORD)
    assert LdapDirectory(replace(plain, start_tls=True), guard.vouched).verify("carol", PASSWORD)


def test_a_password_is_not_sent_over_a_plain_connection(guard):
    with pytest.raises(OperatorError, match="ldaps"):
        LdapDirectory(LdapOptions(url="ldap://ldap.example.org", user_base=""), guard.vouched)


# The library leaves the socket of a failed handshake to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_a_server_whose_certificate_is_not_trusted_is_not_asked(layout, guard):
    for changed in (replace(layout, ca_file=None), replace(layout, url=layout.url.replace("localhost", "127.0.0.1"))):
        with pytest.raises(StoreUnavailable):
            LdapDirectory(changed, guard.vouched).verify("carol", PASSWORD)


def test_a_directory_that_does_not_know_us_is_an_outage(layout, guard):
    with pytest.raises(StoreUnavailable, match="own password"):
        LdapDirectory(replace(layout, bind_password="wrong"), guard.vouched).verify("carol", PASSWORD)


def test_an_anonymous_search_that_may_see_nothing_finds_nobody(layout, guard):
    assert LdapDirectory(replace(layout, bind_dn="", bind_password=""), guard.vouched).verify("carol", PASSWORD) is None


def test_a_name_that_cannot_be_an_accounts_is_refused(guard):
    assert guard.vouched.take("not a name", [], "ldap") is None


def test_the_password_of_the_service_is_in_no_representation(layout):
    assert "the service's password" not in repr(layout)
