"""Fills nginx's templates from the configuration. Text in, text out; reads and writes no file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from chatsvc.errors import OperatorError

Network = IPv4Network | IPv6Network

TEMPLATES = (
    "nginx.conf",
    "chatsvc.conf",
    "chatsvc/chat.conf",
    "chatsvc/errors.conf",
    "chatsvc/limits.conf",
    "chatsvc/proxy.conf",
    "chatsvc/redirect.conf",
    "chatsvc/refusal.conf",
)
ALLOW_LIST = "chatsvc/allow.conf"
_HEADER = "# Made by `chatsvc config nginx` from guard.allowed_networks. Change that, then run the command again.\n"
_PLACEHOLDER = re.compile(r"@([A-Z_]+)@")
_DEADLINE_MARGIN_S = 15
_UNSAFE = re.compile(r"[\s;{}'\"\\$@#]")


@dataclass(frozen=True, slots=True)
class NginxOptions:
    """What nginx needs in addition to the service's configuration."""

    server_name: str
    listen: tuple[str, ...]
    certificate: str
    certificate_key: str
    socket: str
    redirect: tuple[str, ...] = ()
    run_directory: str = "/run/nginx"
    access_log: str = "/dev/stdout"


def allow_list(networks: Sequence[Network]) -> str:
    """An ``allow`` line for each network, then ``deny all``; an empty list denies everybody."""
    return _HEADER + "".join(f"allow {network};\n" for network in networks) + "deny all;\n"


def nginx_values(options: NginxOptions, *, max_body_bytes: int, max_chats: int, deadline_s: float) -> dict[str, str]:
    """The value of each placeholder.

    ``max_chats`` caps the chats that may be connected at once, because each may hold a body in memory.

    Raises:
        OperatorError: a value could end its directive or start another one.
    """
    values = {
        "SERVER_NAME": options.server_name,
        "CERTIFICATE": options.certificate,
        "CERTIFICATE_KEY": options.certificate_key,
        "SOCKET": options.socket,
        "RUN": options.run_directory,
        "ACCESS_LOG": options.access_log,
        "MAX_BODY_BYTES": str(max_body_bytes),
        "MAX_CHATS": str(max_chats),
        "DEADLINE": str(int(deadline_s) + _DEADLINE_MARGIN_S),
    }
    for value in (*values.values(), *options.listen, *options.redirect):
        if not value or _UNSAFE.search(value):
            raise OperatorError(f"{value!r} is not allowed in nginx's configuration: use plain names and paths.")
    values["LISTEN"] = "\n    ".join(f"listen {address} ssl;" for address in options.listen)
    values["LISTEN_DEFAULT"] = "\n    ".join(f"listen {address} ssl default_server;" for address in options.listen)
    values["REDIRECT"] = _redirect(options) if options.redirect else ""
    return values


def _redirect(options: NginxOptions) -> str:
    """The server block on plain HTTP that redirects to HTTPS."""
    lines = [*(f"listen {address};" for address in options.redirect), f"server_name {options.server_name};"]
    return "server {\n    " + "\n    ".join([*lines, "include chatsvc/redirect.conf;"]) + "\n}\n\n"


def fill_in(template: str, values: Mapping[str, str]) -> str:
    """The template with its placeholders filled in; a placeholder without a value is a bug of ours."""
    return _PLACEHOLDER.sub(lambda found: values[found[1]], template)
