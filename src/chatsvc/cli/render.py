"""Renders nginx's files from the configuration. Text in, text out; knows nothing about who writes or reads them."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network

Network = IPv4Network | IPv6Network

_HEADER = """\
# Made by `chatsvc config nginx` from guard.allowed_networks: change it there, then make this file again.
"""


def allow_list(networks: Sequence[Network]) -> str:
    """``allow`` lines for the networks and ``deny all`` after them; an empty list denies everybody."""
    lines = [f"allow {network};\n" for network in networks]
    return _HEADER + "".join(lines) + "deny all;\n"
