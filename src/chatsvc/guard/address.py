"""The client's address, from the peer and ``X-Forwarded-For``. Pure; knows nothing about who is allowed.

1. A peer that is no trusted proxy is the client; its ``X-Forwarded-For`` is ignored.
2. The peer of a unix socket (an empty string) is a trusted proxy.
3. A trusted proxy must send exactly one ``X-Forwarded-For`` header, and every address in it must parse.
4. The client is the rightmost address that is no trusted proxy, or the leftmost if all are.

An address that does not parse is 403, never 500. IPv4-mapped IPv6 addresses (RFC 4291 2.5.5.2) become IPv4 addresses,
so each address has one form. Leading zeros, ports, brackets and zones do not parse.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address

from chatsvc.errors import PermissionRefused
from chatsvc.guard.principal import ClientAddress

Network = IPv4Network | IPv6Network

# Hosts whose connections need no encryption.
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})

# More than any real chain of proxies; bounds the work that one header causes.
_MAX_HOPS = 32
_MAX_ADDRESS_LENGTH = 45


def client_address(peer: str, forwarded_for: Sequence[str], trusted: Sequence[Network]) -> ClientAddress:
    """The client's address.

    Args:
        peer: the address of the socket's other end; empty for a unix socket.
        forwarded_for: the value of each ``X-Forwarded-For`` header.
        trusted: networks of our own proxies.

    Raises:
        PermissionRefused: a trusted proxy sent no header, several, or one that does not parse.
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
    """An IPv4 or IPv6 address; an IPv4-mapped one as IPv4.

    Raises:
        PermissionRefused: it does not parse.
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
    """Whether the address is in one of the networks."""
    return any(address in network for network in networks)


def network_of(address: ClientAddress) -> str:
    """What the throttle counts as one address: the IPv4 address, or the /64 that an IPv6 customer gets."""
    if address.version == 6:
        return str(IPv6Network((address, 64), strict=False))
    return str(address)


def unwrap_network(network: Network) -> Network:
    """An IPv4-mapped network (``::ffff:10.0.0.0/104``) as IPv4, because :func:`parse_address` unwraps addresses too."""
    if network.version == 6 and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((mapped, network.prefixlen - 96))
    return network
