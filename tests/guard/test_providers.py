"""Accounts of people from an external authority."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from joserfc.jwk import RSAKey

from chatsvc.errors import AuthenticationFailed, LimitExceeded
from chatsvc.guard.accounts.external import Person, bounded
from chatsvc.guard.accounts.names import with_digest
from chatsvc.guard.providers.claims import claim_at, groups_in, unverified_issuer
from chatsvc.guard.providers.jwks import usable_keys
from tests.http.test_oidc_foreign import ODD_KEYS

ISSUER = "https://issuer.example"


def person(subject, name):
    return Person("oidc", ISSUER, subject, name)


def test_a_person_whose_two_possible_names_are_taken_is_refused(guard):
    wanted = person("3", "pat")
    guard.external_accounts.find_or_create(person("1", "pat"), ["user"])
    assert guard.external_accounts.find_or_create(person("2", with_digest("pat", wanted.key)), []).name != "pat"
    with pytest.raises(AuthenticationFailed) as caught:
        guard.external_accounts.find_or_create(wanted, [])
    assert "belong to other accounts" in caught.value.reason


def test_a_crowd_of_guessers_does_not_lock_a_person_of_a_directory_out(guard):
    pat = person("1", "pat")
    home, elsewhere = ip_address("192.0.2.1"), ip_address("192.0.2.2")
    guard.sessions.start(guard.external_accounts.find_or_create(pat, ["user"]).account_id, str(home))
    for number in range(100):
        guard.throttle.failed(pat.key, ip_address(f"198.51.100.{number}"))
    guard.throttle.check(pat.key, home)
    with pytest.raises(LimitExceeded):
        guard.throttle.check(pat.key, elsewhere)


def test_an_id_that_is_too_long_is_stored_as_its_digest():
    assert bounded("a" * 255) == "a" * 255
    assert bounded("a" * 256).startswith("sha256:")
    assert bounded("a" * 256) != bounded("b" * 256)


@pytest.mark.parametrize("token", ["", "a.b", "a.!.c", "a.W10.c", "a" * 101, "a.bnVsbA.c"])
def test_what_is_no_token_names_no_issuer(token):
    assert unverified_issuer(token, 100) is None


def test_of_a_key_set_only_keys_that_verify_are_used():
    good = RSAKey.generate_key(2048, parameters={"kid": "good"}).as_dict(private=False)
    keys = usable_keys({"keys": [*ODD_KEYS, good]}, ["RS256"])
    assert [key.kid for key in keys] == ["good"]
    assert not usable_keys({"keys": ODD_KEYS}, ["RS256"])
    assert not usable_keys({"keys": None}, ["RS256"])
    assert not usable_keys({}, ["RS256"])


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("groups", ["a"]),
        ("realm_access.roles", ["b"]),
        ("https://example.org/groups", ["c"]),
        ("resource.my.client.roles", ["d"]),
        ("realm_access", {"roles": ["b"]}),
        ("realm_access.missing", None),
        ("groups.x", None),
        ("missing.roles", None),
        (".", None),
        ("", None),
    ],
)
def test_a_claim_is_found_by_its_name_or_its_path(path, found):
    claims = {
        "groups": ["a"],
        "realm_access": {"roles": ["b"]},
        "https://example.org/groups": ["c"],
        "resource": {"my.client": {"roles": ["d"]}},
    }
    assert claim_at(claims, path) == found


@pytest.mark.parametrize(
    ("claim", "groups"),
    [
        ("a b", ["a b"]),
        (["a", "b"], ["a", "b"]),
        (["a", None, 7, {}, [], {"name": "b"}, {"name": 7}], ["a", "b"]),
        ({"a": {}, "b": True, "c": False, "d": None}, ["a", "b"]),
        (None, []),
        (7, []),
        (True, []),
    ],
)
def test_groups_are_read_from_any_shape(claim, groups):
    assert groups_in(claim) == groups
