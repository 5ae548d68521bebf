"""Accounts of an LDAP directory: it keeps the passwords and the groups, we keep an account that everything counts for.

1. Find the one entry of that name, as the service's own entry or anonymously.
2. Bind as that entry with the password that was given. An empty password never gets here: a bind without one succeeds
   (RFC 4513 5.1.2).
3. Its groups become roles by the configured mapping, anew at every login. No group, no role, no scope.
4. The account is made at its first login. A local account of the same name is asked instead of the directory.

Knows nothing about tokens or HTTP.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ldap3
from ldap3.core.exceptions import LDAPException
from ldap3.utils.conv import escape_filter_chars

from chatsvc.errors import OperatorError, StoreUnavailable
from chatsvc.guard.directory import LoggedIn, VouchedAccounts

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_MAX_GROUPS = 1000


@dataclass(frozen=True, slots=True)
class LdapOptions:
    """Where the directory is and how it is laid out.

    ``user_filter`` holds ``{name}``, ``group_filter`` holds ``{dn}``; both are put in escaped. ``roles`` maps the name
    (``cn``) or the DN of a group to a role.
    """

    url: str
    user_base: str
    user_filter: str = "(uid={name})"
    group_base: str = ""
    group_filter: str = "(member={dn})"
    bind_dn: str = ""
    bind_password: str = field(default="", repr=False)
    start_tls: bool = False
    ca_file: Path | None = None
    roles: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 5.0


class LdapDirectory:
    """Checks passwords against the directory; a connection a login, none is kept."""

    def __init__(self, options: LdapOptions, accounts: VouchedAccounts) -> None:
        place = urlsplit(options.url)
        if place.scheme != "ldaps" and not options.start_tls and place.hostname not in _LOOPBACK:
            raise OperatorError("Passwords go to ldap.url: make it ldaps://…, or set ldap.start_tls.")
        self._options = options
        self._accounts = accounts
        tls = ldap3.Tls(validate=ssl.CERT_REQUIRED, ca_certs_file=str(options.ca_file) if options.ca_file else None)
        self._server = ldap3.Server(options.url, tls=tls, connect_timeout=options.timeout_s, get_info=ldap3.NONE)

    def verify(self, name: str, password: str) -> LoggedIn | None:
        """The account behind the name when the directory takes the password.

        Raises:
            StoreUnavailable: the directory cannot be asked.
        """
        if not password:
            return None
        try:
            with self._bound(self._options.bind_dn, self._options.bind_password) as service:
                if service is None:
                    raise StoreUnavailable("The directory does not take the service's own password.")
                dn = self._find(service, name)  # (1)
                with self._bound(dn or self._options.user_base, password) as own:  # (2)
                    if dn is None or own is None:
                        return None
                roles = self._roles(service, dn)  # (3)
        except LDAPException as error:
            raise StoreUnavailable("The directory cannot be reached; try again.") from error
        return self._accounts.take(name, roles, "ldap")  # (4)

    @contextmanager
    def _bound(self, dn: str, password: str) -> Iterator[Any]:
        """A connection bound as an entry, or None where the directory refuses the password."""
        connection = ldap3.Connection(
            self._server,
            user=dn or None,
            password=password or None,
            authentication=ldap3.SIMPLE if dn else ldap3.ANONYMOUS,
            client_strategy=ldap3.SAFE_SYNC,
            receive_timeout=math.ceil(self._options.timeout_s),  # packed into a C struct: whole seconds only
            auto_referrals=False,
        )
        try:
            connection.open()
            if self._options.start_tls:
                connection.start_tls()
            bound, *_ = connection.bind()
            yield connection if bound else None
        finally:
            left_open = connection.socket  # the library forgets to close the socket of an attempt that failed
            connection.unbind()
            if left_open is not None:
                left_open.close()

    def _find(self, service: Any, name: str) -> str | None:
        wanted = self._options.user_filter.replace("{name}", escape_filter_chars(name))
        _, _, response, _ = service.search(self._options.user_base, wanted, attributes=[], size_limit=2)
        entries = [entry["dn"] for entry in response if entry["type"] == "searchResEntry"]
        return entries[0] if len(entries) == 1 else None

    def _roles(self, service: Any, dn: str) -> list[str]:
        if not self._options.group_base:
            return []
        wanted = self._options.group_filter.replace("{dn}", escape_filter_chars(dn))
        _, _, response, _ = service.search(self._options.group_base, wanted, attributes=["cn"], size_limit=_MAX_GROUPS)
        groups = [entry for entry in response if entry["type"] == "searchResEntry"]
        names = {name for group in groups for name in (group["dn"], *group["attributes"].get("cn", []))}
        return [role for group, role in self._options.roles.items() if group in names]
