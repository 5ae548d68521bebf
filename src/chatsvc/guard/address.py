"""The client's address out of the peer and the forwarded chain. Pure; knows nothing about who is allowed.

The rules:

1. A peer that is not trusted is the client; whatever it forwards is ignored.
2. The peer of a unix socket (an empty string) is the trusted proxy.
3. A trusted peer must bring exactly one ``X-Forwarded-For`` header and every part of it must parse.
4. The chain is walked from the right over trusted networks; the first address that is not trusted is the client's,
   and where all are trusted it is the leftmost.

Whatever does not parse is refused (403), never an error of ours. IPv4-mapped IPv6 addresses are unwrapped, so one
address has one form. Leading zeros, ports, brackets and zones do not parse.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address

from chatsvc.errors import PermissionRefused
from chatsvc.guard.principal import ClientAddress

Network = IPv4Network | IPv6Network

# Longer chains than any chain of real proxies; bounds the work an attacker can ask for.
_MAX_HOPS = 32
_MAX_ADDRESS_LENGTH = 45


def client_address(peer: str, forwarded_for: Sequence[str], trusted: Sequence[Network]) -> ClientAddress:
    """The client's address.

    Args:
        peer: the socket's other end; empty for a unix socket.
        forwarded_for: the values of every ``X-Forwarded-For`` header.
        trusted: networks of our own proxies.

    Raises:
        PermissionRefused: the chain does not say one address.
    """
    if peer:
        client = parse_address(peer)
        if not contains(trusted, client):
            return client  # 1
    if len(forwarded_for) != 1:  # 3
        raise PermissionRefused(f"the proxy sent {len(forwarded_for)} X-Forwarded-For headers")
    parts = forwarded_for[0].split(",")
    if len(parts) > _MAX_HOPS:
        raise PermissionRefused("the forwarded chain is too long")
    chain = [parse_address(part.strip(" \t")) for part in parts]
    for hop in reversed(chain):  # 4
        if not contains(trusted, hop):
            return hop
    return chain[0]


def parse_address(text: str) -> ClientAddress:
    """One address in its one form.

    Raises:
        PermissionRefused: it is none.
    """
    if len(text) > _MAX_ADDRESS_LENGTH or "%" in text:
        raise PermissionRefused("an address does not parse")
    try:
        address = ip_address(text)
    except ValueError:
        raise PermissionRefused("an address does not parse") from None
    if address.version == 6 and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def contains(networks: Iterable[Network], address: ClientAddress) -> bool:
    """Whether one of the networks holds the address."""
    return any(address in network for network in networks)


def place_of(address: ClientAddress) -> str:
    """What counts as one address: an IPv4 address, or the /64 that one IPv6 customer is given."""
    if address.version == 6:
        return str(IPv6Network((address, 64), strict=False))
    return str(address)


def unwrap_network(network: Network) -> Network:
    """An IPv4-mapped network (``::ffff:10.0.0.0/104``) as the IPv4 network that its addresses are compared with."""
    if network.version == 6 and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((mapped, network.prefixlen - 96))
    return network
