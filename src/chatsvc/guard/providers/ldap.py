"""Accounts of an LDAP directory: it keeps the passwords and the groups, we keep an account that everything counts for.

1. Find the one entry of that name, as the service's own entry or anonymously. What was typed is only looked for: who
   it is, and how the name is spelled, the entry says.
2. Whoever has to wait for failed logins is refused.
3. Bind as that entry with the password that was given. An empty password never gets here: a bind without one succeeds
   (RFC 4513 5.1.2).
4. Its groups become roles by the configured mapping, anew at every login. No group, no role, no scope.
5. The account is made at its first login, for the entry's ``entryUUID`` (RFC 4530) or ``objectGUID``; where a directory
   has neither, for its DN. A local account of the same name is asked instead of the directory.

A directory that is silent is waited for by one login at a time; the others are refused at once. Knows nothing about
tokens or HTTP.
"""

from __future__ import annotations

import math
import ssl
import struct
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ldap3
from ldap3.core.exceptions import LDAPException, LDAPInvalidDnError
from ldap3.utils.conv import escape_filter_chars
from ldap3.utils.dn import parse_dn

from chatsvc.errors import IdentityUnavailable, OperatorError
from chatsvc.guard.accounts.names import name_key
from chatsvc.guard.providers.directory import LoggedIn, Person, VouchedAccounts, admit_all, bounded
from chatsvc.store.breaker import Breaker

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_MAX_GROUPS = 1000
# The library's own errors, and what its decoder raises for an answer that is no LDAP.
_FAILURES = (LDAPException, LookupError, ValueError, TypeError, AttributeError, struct.error)


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


@dataclass(frozen=True, slots=True)
class _Entry:
    dn: str
    person: Person


class LdapDirectory:
    """Checks passwords against the directory; a connection a login, none is kept."""

    def __init__(self, options: LdapOptions, accounts: VouchedAccounts) -> None:
        place = urlsplit(options.url)
        if place.scheme != "ldaps" and not options.start_tls and place.hostname not in _LOOPBACK:
            raise OperatorError("Passwords go to ldap.url: make it ldaps://…, or set ldap.start_tls.")
        self._options = options
        self._accounts = accounts
        self._breaker = Breaker(options.timeout_s, refusal=IdentityUnavailable)
        self._name_attributes = _compared(options.user_filter)
        tls = ldap3.Tls(validate=ssl.CERT_REQUIRED, ca_certs_file=str(options.ca_file) if options.ca_file else None)
        self._server = ldap3.Server(options.url, tls=tls, connect_timeout=options.timeout_s, get_info=ldap3.NONE)

    def verify(self, name: str, password: str, admit: Callable[[Person], None] = admit_all) -> LoggedIn | None:
        """The account behind the name when the directory takes the password. ``admit`` is step 2.

        Raises:
            IdentityUnavailable: the directory cannot be asked.
            AuthenticationFailed: the password is right, and the account may not be used.
        """
        if not password:
            return None
        try:
            with self._breaker.watch(*_FAILURES):
                proved = self._proved(name, password, admit)
        except _FAILURES as error:
            raise IdentityUnavailable from error
        return self._accounts.take(*proved) if proved is not None else None  # (5)

    def _proved(self, name: str, password: str, admit: Callable[[Person], None]) -> tuple[Person, Sequence[str]] | None:
        """Steps 1 to 4: who it is, and the roles; None where the password is not that person's."""
        with self._bound(self._options.bind_dn, self._options.bind_password) as service:
            if service is None:
                raise IdentityUnavailable("The directory does not take the service's own password.")
            entry = self._find(service, name)  # (1)
            if entry is not None:
                admit(entry.person)  # (2)
            with self._bound(entry.dn if entry else self._options.user_base, password) as own:  # (3)
                if entry is None or own is None:
                    return None
            return entry.person, self._roles(service, entry.dn)  # (4)

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

    def _find(self, service: Any, name: str) -> _Entry | None:
        wanted = self._options.user_filter.replace("{name}", escape_filter_chars(name))
        attributes = [*self._name_attributes, "entryUUID", "objectGUID"]
        _, _, response, _ = service.search(self._options.user_base, wanted, attributes=attributes, size_limit=2)
        entries = [entry for entry in response if entry["type"] == "searchResEntry"]
        if len(entries) != 1:
            return None
        dn, values = entries[0]["dn"], {key.lower(): found for key, found in entries[0]["raw_attributes"].items()}
        spelled = _spelled(dn, values, self._name_attributes)
        return _Entry(dn, Person("ldap", "ldap", bounded(_subject(dn, values)), spelled))

    def _roles(self, service: Any, dn: str) -> list[str]:
        if not self._options.group_base:
            return []
        wanted = self._options.group_filter.replace("{dn}", escape_filter_chars(dn))
        _, _, response, _ = service.search(self._options.group_base, wanted, attributes=["cn"], size_limit=_MAX_GROUPS)
        groups = [entry for entry in response if entry["type"] == "searchResEntry"]
        names = {_group_key(name) for group in groups for name in (group["dn"], *group["attributes"].get("cn", []))}
        return [role for group, role in self._options.roles.items() if _group_key(group) in names]


def _compared(user_filter: str) -> list[str]:
    """The attributes that a filter compares with the name: ``(uid={name})``, ``(sAMAccountName:1.2.3:={name})``."""
    items = [text.rpartition("(")[2] for text in user_filter.split("{name}")[:-1]]
    attributes = [item.partition("=")[0].partition(":")[0].strip(" ~<>") for item in items]
    return [attribute for attribute in attributes if attribute]


def _subject(dn: str, values: Mapping[str, Sequence[bytes]]) -> str:
    """What the directory cannot change about an entry; where it tells nothing of the kind, where the entry stands."""
    for unique_id in values.get("entryuuid", ()):
        return f"entryUUID:{unique_id.decode('ascii', 'replace').lower()}"
    for unique_id in values.get("objectguid", ()):
        if len(unique_id) == 16:
            return f"objectGUID:{uuid.UUID(bytes_le=unique_id)}"
    return f"dn:{_normal_dn(dn)}"


def _normal_dn(dn: str) -> str:
    """One form of all spellings of a DN: without regard to case, width and spaces."""
    return ",".join(f"{attribute.lower()}={name_key(value)}" for attribute, value in _parts(dn))


def _group_key(name: str) -> str:
    """What the configuration's name of a group and the directory's are compared by: a DN, or a ``cn``."""
    return _normal_dn(name) if "=" in name else name_key(name)


def _spelled(dn: str, values: Mapping[str, Sequence[bytes]], attributes: Sequence[str]) -> str:
    """The entry's own spelling of its name: of several values the one that the DN begins with, else the least."""
    leading_attribute, leading_value = _parts(dn)[0]
    for attribute in attributes:
        texts = [value.decode("utf-8", "replace") for value in values.get(attribute.lower(), ())]
        if texts:
            is_leading = attribute.lower() == leading_attribute.lower()
            return next((text for text in texts if is_leading and text == leading_value), min(texts))
    return leading_value


def _parts(dn: str) -> list[tuple[str, str]]:
    """The attributes of a DN and their values; a DN that does not parse is one value."""
    try:
        return [(attribute, value) for attribute, value, _ in parse_dn(dn, strip=True)]
    except LDAPInvalidDnError:
        return [("", dn)]
