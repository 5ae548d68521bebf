"""Checks passwords against an LDAP directory, which also decides names and groups. Knows nothing about tokens or HTTP.

1. Search for the one entry of the typed name, bound as the service or anonymously. The entry, not what was typed, says
   who the person is and how the name is spelled.
2. Throttle the person.
3. Bind as the entry with the typed password. An empty password is refused before: a bind without one succeeds as
   unauthenticated (RFC 4513 5.1.2).
4. Map the entry's groups to roles, anew at every login. Without a mapped group there is no role and no scope.
5. Find or create the account by the entry's ``entryUUID`` (RFC 4530) or ``objectGUID``, or by its DN if the directory
   has neither. Names of local accounts are never looked up in the directory.

While the directory does not answer, one login at a time waits for it; the others are refused at once.
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
from chatsvc.guard.accounts.external import ExternalAccounts, LoggedIn, Person, admit_all, bounded
from chatsvc.guard.accounts.names import name_key
from chatsvc.guard.address import LOOPBACK_HOSTS
from chatsvc.store.breaker import Breaker

_MAX_GROUPS = 1000
# The library's own errors, and what its decoder raises if an answer is not LDAP.
_FAILURES = (LDAPException, LookupError, ValueError, TypeError, AttributeError, struct.error)


@dataclass(frozen=True, slots=True)
class LdapOptions:
    """Where the directory is and how to search it.

    Attributes:
        url: ``ldaps://…``, or ``ldap://…`` with ``start_tls`` or on this machine.
        user_base, user_filter: where and how entries are found; ``{name}`` is replaced by the escaped name.
        group_base, group_filter: the same for groups, with the entry's ``{dn}``; no ``group_base``: no groups.
        bind_dn, bind_password: the service's own entry; empty: anonymous.
        start_tls: encrypt by StartTLS.
        ca_file: certificates to verify the server with; None: the system's.
        roles: role by a group's ``cn`` or DN.
        timeout_s: for connecting and for each answer.
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
    """Checks passwords against the directory, with a new connection for each login."""

    def __init__(self, options: LdapOptions, accounts: ExternalAccounts) -> None:
        url = urlsplit(options.url)
        if url.scheme != "ldaps" and not options.start_tls and url.hostname not in LOOPBACK_HOSTS:
            raise OperatorError("Passwords are sent to ldap.url, so encrypt it: use ldaps://… or set ldap.start_tls.")
        self._options = options
        self._accounts = accounts
        self._breaker = Breaker(options.timeout_s, refusal=IdentityUnavailable)
        self._name_attributes = _compared(options.user_filter)
        tls = ldap3.Tls(validate=ssl.CERT_REQUIRED, ca_certs_file=str(options.ca_file) if options.ca_file else None)
        self._server = ldap3.Server(options.url, tls=tls, connect_timeout=options.timeout_s, get_info=ldap3.NONE)

    def verify(self, name: str, password: str, admit: Callable[[Person], None] = admit_all) -> LoggedIn | None:
        """See :meth:`chatsvc.guard.accounts.external.Directory.verify`; ``admit`` is step 2."""
        if not password:
            return None
        try:
            with self._breaker.watch(*_FAILURES):
                proved = self._proved(name, password, admit)
        except _FAILURES as error:
            raise IdentityUnavailable from error
        return self._accounts.find_or_create(*proved) if proved is not None else None  # (5)

    def _proved(self, name: str, password: str, admit: Callable[[Person], None]) -> tuple[Person, Sequence[str]] | None:
        """Steps 1 to 4: the person and the roles; None if there is no such person or the password is wrong."""
        with self._bound(self._options.bind_dn, self._options.bind_password) as service:
            if service is None:
                raise IdentityUnavailable("The directory refuses the service's own password.")
            entry = self._find(service, name)  # (1)
            if entry is not None:
                admit(entry.person)  # (2)
            with self._bound(entry.dn if entry else self._options.user_base, password) as own:  # (3)
                if entry is None or own is None:
                    return None
            return entry.person, self._roles(service, entry.dn)  # (4)

    @contextmanager
    def _bound(self, dn: str, password: str) -> Iterator[Any]:
        """A connection bound as an entry; None if the directory refuses the password."""
        connection = ldap3.Connection(
            self._server,
            user=dn or None,
            password=password or None,
            authentication=ldap3.SIMPLE if dn else ldap3.ANONYMOUS,
            client_strategy=ldap3.SAFE_SYNC,
            receive_timeout=math.ceil(self._options.timeout_s),  # ldap3 packs it into a C struct of whole seconds
            auto_referrals=False,
        )
        try:
            connection.open()
            if self._options.start_tls:
                connection.start_tls()
            bound, *_ = connection.bind()
            yield connection if bound else None
        finally:
            left_open = connection.socket  # ldap3 leaves the socket of a failed attempt open
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
    """The attributes that a filter compares with ``{name}``, as in ``(uid={name})`` or ``(cn:1.2.3:={name})``."""
    items = [text.rpartition("(")[2] for text in user_filter.split("{name}")[:-1]]
    attributes = [item.partition("=")[0].partition(":")[0].strip(" ~<>") for item in items]
    return [attribute for attribute in attributes if attribute]


def _subject(dn: str, values: Mapping[str, Sequence[bytes]]) -> str:
    """An entry's unchanging id, or its DN if the directory gives none."""
    for unique_id in values.get("entryuuid", ()):
        return f"entryUUID:{unique_id.decode('ascii', 'replace').lower()}"
    for unique_id in values.get("objectguid", ()):
        if len(unique_id) == 16:
            return f"objectGUID:{uuid.UUID(bytes_le=unique_id)}"
    return f"dn:{_normal_dn(dn)}"


def _normal_dn(dn: str) -> str:
    """A DN in the form in which DNs are compared: without regard to case, width and spaces."""
    return ",".join(f"{attribute.lower()}={name_key(value)}" for attribute, value in _parts(dn))


def _group_key(name: str) -> str:
    """A group's DN or ``cn`` in the form in which configured and found groups are compared."""
    return _normal_dn(name) if "=" in name else name_key(name)


def _spelled(dn: str, values: Mapping[str, Sequence[bytes]], attributes: Sequence[str]) -> str:
    """The entry's spelling of its name: of several values the one in the DN's first part, else the smallest."""
    leading_attribute, leading_value = _parts(dn)[0]
    for attribute in attributes:
        texts = [value.decode("utf-8", "replace") for value in values.get(attribute.lower(), ())]
        if texts:
            is_leading = attribute.lower() == leading_attribute.lower()
            return next((text for text in texts if is_leading and text == leading_value), min(texts))
    return leading_value


def _parts(dn: str) -> list[tuple[str, str]]:
    """The (attribute, value) pairs of a DN; one that does not parse is a single value."""
    try:
        return [(attribute, value) for attribute, value, _ in parse_dn(dn, strip=True)]
    except LDAPInvalidDnError:
        return [("", dn)]
