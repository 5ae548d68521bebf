"""The client's address: the rightmost that is no trusted proxy; what does not parse is 403, never 500."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatsvc.errors import PermissionRefused
from chatsvc.guard.address import client_address, contains, parse_address, unwrap_network

TRUSTED = [ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")]


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("203.0.113.9", [], "203.0.113.9"),
        ("203.0.113.9", ["127.0.0.1"], "203.0.113.9"),
        ("203.0.113.9", ['"'], "203.0.113.9"),
        ("::ffff:203.0.113.9", [], "203.0.113.9"),
        ("192.0.2.1", ["203.0.113.9"], "203.0.113.9"),
        ("::ffff:192.0.2.1", ["203.0.113.9"], "203.0.113.9"),
        ("192.0.2.1", ["127.0.0.1, 203.0.113.9"], "203.0.113.9"),
        ("192.0.2.1", ["127.0.0.1, 203.0.113.9, 192.0.2.7"], "203.0.113.9"),
        ("192.0.2.1", ["203.0.113.9,192.0.2.7,2001:db8::1"], "203.0.113.9"),
        ("192.0.2.1", ["192.0.2.5, 192.0.2.6"], "192.0.2.5"),
        ("192.0.2.1", ["::ffff:127.0.0.1"], "127.0.0.1"),
        ("", ["203.0.113.9"], "203.0.113.9"),
        ("", ["\t203.0.113.9 "], "203.0.113.9"),
        ("", ["2001:DB8:1::9"], "2001:db8:1::9"),
    ],
)
def test_the_first_address_from_the_right_that_is_not_trusted_is_the_clients(peer, forwarded, expected):
    assert client_address(peer, forwarded, TRUSTED) == ip_address(expected)


@pytest.mark.parametrize(
    "forwarded",
    [
        [],
        [""],
        ['"'],
        [","],
        ["203.0.113.9,"],
        [",203.0.113.9"],
        ["203.0.113.9", "203.0.113.9"],
        ["203.0.113.9:1234"],
        ["[2001:db8::1]"],
        ["fe80::1%eth0"],
        ["010.0.0.1"],
        ["10.1"],
        ["0x7f.0.0.1"],
        ["2130706433"],
        ["unknown"],
        ["for=203.0.113.9"],
        ["203.0.113.9 127.0.0.1"],
        ["junk, 203.0.113.9"],
        ["127.0.0.1\0"],
        ["١٢٧.0.0.1"],
        ["1" * 100_000],
        [",".join(["203.0.113.9"] * 33)],
    ],
)
@pytest.mark.parametrize("peer", ["", "192.0.2.1"])
def test_what_the_proxy_sends_and_does_not_say_one_address_is_refused(peer, forwarded):
    with pytest.raises(PermissionRefused):
        client_address(peer, forwarded, TRUSTED)


@pytest.mark.parametrize("peer", ["nonsense", "127.0.0.1:80", "@", " "])
def test_a_peer_that_does_not_parse_is_refused(peer):
    with pytest.raises(PermissionRefused):
        client_address(peer, [], TRUSTED)


@given(st.text(), st.lists(st.text(), max_size=3))
def test_no_text_makes_an_error_of_ours(peer, forwarded):
    with suppress(PermissionRefused):
        client_address(peer, forwarded, TRUSTED)


@given(st.ip_addresses())
def test_every_address_has_one_form(address):
    parsed = parse_address(str(address))
    assert parse_address(str(parsed)) == parsed
    assert parsed.version == 4 or parsed.ipv4_mapped is None


def test_a_mapped_network_holds_the_unwrapped_addresses():
    network = unwrap_network(ip_network("::ffff:10.0.0.0/104"))
    assert network == ip_network("10.0.0.0/8")
    assert contains([network], parse_address("::ffff:10.1.2.3"))


@pytest.mark.parametrize("network", ["10.0.0.0/8", "2001:db8::/32", "2001:db8::/120", "::/0"])
def test_another_network_stays_as_it_is(network):
    assert unwrap_network(ip_network(network)) == ip_network(network)
