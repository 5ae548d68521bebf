"""Logins against a real slapd: bind, groups to roles, and a directory's quirks that must not let anybody in."""

from __future__ import annotations

import re
import socket
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from ipaddress import ip_address

import pytest

from chatsvc.errors import AuthenticationFailed, IdentityUnavailable, LimitExceeded, OperatorError, StoreUnavailable
from chatsvc.guard.accounts.login import Login
from chatsvc.guard.outbox import Outbox
from tests.conftest import poll_until
from tests.servers import DIRECTORY_PASSWORD as PASSWORD
from tests.servers import free_port

pytest.importorskip("ldap3", reason="the extra 'directory' is not installed")

import ldap3

from chatsvc.guard.providers.ldap import LdapDirectory, LdapOptions
from chatsvc.guard.providers.ldap import _compared as ldap_compared
from chatsvc.guard.providers.ldap import _spelled as ldap_spelled
from chatsvc.guard.providers.ldap import _subject as ldap_subject

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
    return LdapDirectory(layout, guard.external_accounts)


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
    LdapDirectory(replace(layout, roles={}), guard.external_accounts).verify("carol", PASSWORD)
    Outbox(guard.database, lambda *record: records.append(record)).drain()
    assert [(action, actor) for action, actor, _ in records] == [("ldap.account", "directory")] * 2
    assert records[0][2]["before"] is None
    assert (records[1][2]["before"]["roles"], records[1][2]["after"]["roles"]) == (["operator", "user"], [])


def test_roles_are_those_of_today(directory, layout, guard):
    directory.verify("carol", PASSWORD)
    LdapDirectory(replace(layout, roles={"chatters": "viewer"}), guard.external_accounts).verify("carol", PASSWORD)
    assert guard.accounts.get("carol").roles == ("viewer",)
    LdapDirectory(replace(layout, group_base=""), guard.external_accounts).verify("carol", PASSWORD)
    assert guard.accounts.get("carol").roles == ()


def test_a_group_is_found_by_its_dn_in_any_spelling(layout, guard):
    spelled = {"CN=Operators, OU=Groups,DC=example,dc=org": "operator", "CHATTERS": "user", "cn=chatters": "admin"}
    LdapDirectory(replace(layout, roles=spelled), guard.external_accounts).verify("carol", PASSWORD)
    assert guard.accounts.get("carol").roles == ("operator", "user")


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
    with pytest.raises(AuthenticationFailed) as caught:
        directory.verify("carol", PASSWORD)
    assert "local" in caught.value.reason
    assert login.verify("carol", "the local account's password", ip_address("127.0.0.2"))
    assert guard.accounts.get("carol").roles == ("admin",)


def test_the_local_administrator_comes_in_while_the_directory_is_down(layout, guard):
    guard.accounts.add("admin", "the administrator's password", ["admin"])
    down = LdapDirectory(replace(layout, url=f"ldaps://localhost:{free_port()}"), guard.external_accounts)
    login = Login(guard.database, guard.passwords, guard.throttle, down)
    assert login.verify("admin", "the administrator's password", HERE)
    with pytest.raises(StoreUnavailable):
        login.verify("carol", PASSWORD, HERE)
    with pytest.raises(StoreUnavailable):
        LdapDirectory(replace(layout, url="ldaps://no-such-host.invalid"), guard.external_accounts).verify(
            "carol", PASSWORD
        )


def test_start_tls_and_plain_on_loopback_work_too(layout, slapd, guard):
    plain = replace(layout, url=f"ldap://localhost:{slapd.plain}")
    assert LdapDirectory(plain, guard.external_accounts).verify("carol", PASSWORD)
    assert LdapDirectory(replace(plain, start_tls=True), guard.external_accounts).verify("carol", PASSWORD)


def test_a_password_is_not_sent_over_a_plain_connection(guard):
    with pytest.raises(OperatorError, match="ldaps"):
        LdapDirectory(LdapOptions(url="ldap://ldap.example.org", user_base=""), guard.external_accounts)


# The library leaves the socket of a failed handshake to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_a_server_whose_certificate_is_not_trusted_is_not_asked(layout, guard):
    for changed in (replace(layout, ca_file=None), replace(layout, url=layout.url.replace("localhost", "127.0.0.1"))):
        with pytest.raises(StoreUnavailable):
            LdapDirectory(changed, guard.external_accounts).verify("carol", PASSWORD)


def test_a_directory_that_does_not_know_us_is_an_outage(layout, guard):
    with pytest.raises(StoreUnavailable, match="own password"):
        LdapDirectory(replace(layout, bind_password="wrong"), guard.external_accounts).verify("carol", PASSWORD)


def test_an_anonymous_search_without_read_access_finds_no_entry(layout, guard):
    assert (
        LdapDirectory(replace(layout, bind_dn="", bind_password=""), guard.external_accounts).verify("carol", PASSWORD)
        is None
    )


SPELLINGS = ["carol", "CAROL", "cArOl", "ｃａｒｏｌ", " carol", "carol ", "CAROL  "]


def test_one_person_has_one_account_however_the_name_is_typed(login, guard):
    found = {login.verify(spelling, PASSWORD, HERE) for spelling in SPELLINGS}
    assert len(found) == 1
    assert [(account.name, account.source) for account in guard.accounts.list_accounts()] == [("carol", "ldap")]


def test_no_spelling_is_a_way_round_a_disabled_account(login, guard):
    login.verify("carol", PASSWORD, HERE)
    guard.accounts.set_disabled("CAROL", disabled=True)
    for number, spelling in enumerate(SPELLINGS):
        with pytest.raises(AuthenticationFailed):
            login.verify(spelling, PASSWORD, ip_address(f"198.51.100.{number}"))
    assert len(guard.accounts.list_accounts()) == 1


def test_no_spelling_is_a_way_round_the_throttle(layout, guard):
    """Not even a spelling that only the directory regards as equal: another attribute, or inner white space."""
    both = replace(layout, user_filter="(&(objectClass=inetOrgPerson)(|(uid={name})(mail={name})))")
    login = Login(guard.database, guard.passwords, guard.throttle, LdapDirectory(both, guard.external_accounts))
    spellings = ["pat o'neil", "PAT  O'NEIL", "pat@example.org", "PAT@example.org", " Pat   O'Neil"]
    for spelling in spellings:
        refused(login, spelling, "a wrong password")
    for spelling in [*spellings, "Pat@Example.Org", "pat o'neil "]:
        with pytest.raises(LimitExceeded):
            login.verify(spelling, PASSWORD, HERE)
    assert login.verify("pat@example.org", PASSWORD, ip_address("198.51.100.1")).name == "Pat_O_Neil"


@contextmanager
def as_root(slapd):
    server = ldap3.Server(f"ldap://127.0.0.1:{slapd.plain}", get_info=ldap3.NONE)
    connection = ldap3.Connection(server, "cn=root,dc=example,dc=org", "the root's password", auto_bind=True)
    with closing(connection.socket):
        yield connection
        connection.unbind()


@pytest.fixture
def erin(slapd):
    """``erin(uid)`` adds an entry of that name; it is removed after the test."""
    added = []

    def add(uid):
        dn = f"uid={uid},ou=people,dc=example,dc=org"
        with as_root(slapd) as root:
            values = {"uid": uid, "cn": "Erin", "sn": "E", "userPassword": PASSWORD}
            assert root.add(dn, "inetOrgPerson", values), root.result
        added.append(dn)

    yield add
    with as_root(slapd) as root:
        for dn in added:
            root.delete(dn)


def test_a_person_who_is_renamed_keeps_the_account(login, guard, slapd, erin):
    erin("erin")
    before = login.verify("erin", PASSWORD, HERE)
    with as_root(slapd) as root:
        assert root.modify_dn("uid=erin,ou=people,dc=example,dc=org", "uid=erin.new", delete_old_dn=True)
    try:
        after = login.verify("erin.new", PASSWORD, HERE)
    finally:
        with as_root(slapd) as root:
            root.delete("uid=erin.new,ou=people,dc=example,dc=org")
    assert (after.account_id, after.name) == (before.account_id, "erin.new")


def test_a_new_person_of_an_old_name_does_not_get_the_old_account(login, guard, slapd, erin):
    erin("erin")
    before = login.verify("erin", PASSWORD, HERE)
    with as_root(slapd) as root:
        root.delete("uid=erin,ou=people,dc=example,dc=org")
    erin("erin")
    after = login.verify("erin", PASSWORD, HERE)
    assert after.account_id != before.account_id
    assert re.fullmatch(r"erin\.[0-9a-f]{8}", after.name)
    assert login.verify("ERIN", PASSWORD, HERE) == after


def test_a_new_entry_is_no_way_round_a_disabled_account(login, guard, slapd, erin):
    erin("erin")
    login.verify("erin", PASSWORD, HERE)
    guard.accounts.set_disabled("erin", disabled=True)
    with as_root(slapd) as root:
        root.delete("uid=erin,ou=people,dc=example,dc=org")
    erin("Erin")
    refused(login, "erin")
    assert len(guard.accounts.list_accounts()) == 1


def old_account(guard, name, *, disabled=False):
    """An account as earlier versions created it, under the typed name."""
    with guard.database.session() as session:
        row = guard.accounts.new_row(name, "", ["user"], "ldap")
        row.name_key = name if name == name.lower() else f"{name.lower()}#{row.id}"
        row.disabled_at = 1.0 if disabled else None
        session.add(row)
        return row.id


def test_an_account_of_an_earlier_version_is_adopted(login, guard):
    old = old_account(guard, "carol")
    assert login.verify("Carol", PASSWORD, HERE).account_id == old
    assert login.verify("carol", PASSWORD, HERE).account_id == old


def test_of_doubled_accounts_the_one_with_the_entrys_spelling_is_adopted(login, guard):
    ids = {name: old_account(guard, name) for name in ("CAROL", "carol", "Carol")}
    for spelling in SPELLINGS:
        assert login.verify(spelling, PASSWORD, HERE).account_id == ids["carol"]
    (group,) = guard.accounts.list_doubled()
    assert {account.name for account in group} == set(ids)
    for name in ("CAROL", "Carol"):
        guard.accounts.remove(name)
    assert guard.accounts.list_doubled() == []
    assert login.verify("CAROL", PASSWORD, HERE).account_id == ids["carol"]


def test_a_doubled_account_that_was_disabled_is_not_forgotten(login, guard):
    old_account(guard, "carol")
    old_account(guard, "CAROL", disabled=True)
    refused(login, "carol")


def test_a_directory_that_hangs_keeps_one_waiting_and_refuses_the_others_at_once(layout, guard, slapd):
    directory = LdapDirectory(replace(layout, timeout_s=1.5), guard.external_accounts)
    login = Login(guard.database, guard.passwords, guard.throttle, directory)
    with slapd.hanging():
        with pytest.raises(IdentityUnavailable):
            login.verify("carol", PASSWORD, HERE)
        started_at = time.monotonic()
        for _ in range(10):
            with pytest.raises(IdentityUnavailable):
                login.verify("carol", PASSWORD, HERE)
        assert time.monotonic() - started_at < 10  # sequentially it would take 20 s or more
    poll_until(lambda: answers(login), what="the directory")


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"\x30\x05\x02\x01\x01\x00\x00", b"\x30\x03\x02\x01\x01"]
)
def test_what_is_no_directory_is_an_outage(guard, answer):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        options = LdapOptions(url=f"ldap://127.0.0.1:{listener.getsockname()[1]}", user_base="dc=x", timeout_s=2)
        with pytest.raises(IdentityUnavailable):
            LdapDirectory(options, guard.external_accounts).verify("carol", PASSWORD)
        thread.join()


def answers(login):
    try:
        return login.verify("carol", PASSWORD, HERE)
    except IdentityUnavailable:
        return None


@pytest.mark.parametrize(
    ("dn", "values", "subject"),
    [
        (
            "uid=a,dc=x",
            {"entryuuid": [b"18106900-7E31-1041-9bb7-83d7235c06ca"]},
            "entryUUID:18106900-7e31-1041-9bb7-83d7235c06ca",
        ),
        # [MS-DTYP] 2.3.4.2: the first three fields of a GUID are little-endian
        ("cn=a,dc=x", {"objectguid": [bytes(range(16))]}, "objectGUID:03020100-0504-0706-0809-0a0b0c0d0e0f"),
        ("CN=Pat  O'Neil, OU=People,DC=Example", {}, "dn:cn=pat o'neil,ou=people,dc=example"),
        ("not a dn", {}, "dn:=not a dn"),
        ("cn=pat o'neil,ou=ＰEOPLE,dc=example", {"objectguid": [b"short"]}, "dn:cn=pat o'neil,ou=people,dc=example"),
    ],
)
def test_an_entry_is_known_by_what_its_directory_cannot_change_else_by_its_dn(dn, values, subject):
    assert ldap_subject(dn, values) == subject


@pytest.mark.parametrize(
    ("user_filter", "attributes"),
    [
        ("(uid={name})", ["uid"]),
        ("(&(objectClass=person)(|(sAMAccountName={name})(mail={name})))", ["sAMAccountName", "mail"]),
        ("( cn:2.5.13.2:= {name})(sn~={name})", ["cn", "sn"]),
        ("(objectClass=person)", []),
        ("{name}", []),
    ],
)
def test_the_attributes_of_the_name_are_those_of_the_filter(user_filter, attributes):
    assert ldap_compared(user_filter) == attributes


@pytest.mark.parametrize(
    ("dn", "values", "spelled"),
    [
        ("uid=Carol,dc=x", {"uid": [b"carol.alias", b"Carol"]}, "Carol"),
        ("cn=Carol Smith,dc=x", {"uid": [b"second", b"first"], "mail": [b"c@x"]}, "first"),
        ("cn=Carol Smith,dc=x", {"mail": [b"c@x"]}, "c@x"),
        ("cn=Carol Smith,dc=x", {}, "Carol Smith"),
    ],
)
def test_the_name_is_the_entrys_own_whatever_was_typed(dn, values, spelled):
    assert ldap_spelled(dn, values, ["uid", "mail"]) == spelled


def test_the_password_of_the_service_is_in_no_representation(layout):
    assert "the service's password" not in repr(layout)
