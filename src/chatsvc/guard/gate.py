"""The gate: authenticates, authorises and admits requests. Knows nothing about HTTP, routes or the model.

Its steps have the numbers of a request's way (``docs/explanation/request-path.md``); step 4, the body, is HTTP's.

1. Address: the client's address is on the allow-list.                   403
2. Token: exactly one credential; it is valid and not revoked.           401; 503 if the store cannot say
3. Scope: the principal has the scope that the route requires.           403
5. Rate: requests a minute, of the API key and of the account.           429
6. Quota: tokens of today are left; :meth:`Admission.charge` takes them. 429
7. Queue: a ticket, to run or to wait for a slot.                        429 own limit; 503 queue full

Every request takes steps 1 to 3, those that use the model also 5 to 7 (:meth:`Gate.admit`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from chatsvc.errors import AuditUnavailable, AuthenticationFailed, LimitExceeded, PermissionRefused, StoreUnavailable
from chatsvc.guard.accounts.external import BearerAccount, TrustedIssuer
from chatsvc.guard.accounts.roles import Roles, parse_names
from chatsvc.guard.accounts.throttle import LoginThrottle
from chatsvc.guard.address import Network, client_address, contains, unwrap_network
from chatsvc.guard.credentials.api_keys import PREFIX, ApiKeys
from chatsvc.guard.credentials.sessions import Sessions
from chatsvc.guard.credentials.tokens import Kind, Tokens
from chatsvc.guard.limits.admission import Admission, Standing, limits_headers
from chatsvc.guard.limits.queue import Queue
from chatsvc.guard.limits.quotas import Bucket, Quotas
from chatsvc.guard.limits.rates import Rates
from chatsvc.guard.outbox import Outbox
from chatsvc.guard.principal import ClientAddress, KeyLimits, Limits, Principal, Requirement
from chatsvc.store.database import AnyRow

__all__ = ["Admission", "Credentials", "Gate", "GateOptions", "GateParts"]

_PURGE_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a request sent: the value of each ``Authorization`` and each ``X-Api-Key`` header."""

    authorization: Sequence[str] = ()
    api_key: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class GateOptions:
    """Networks and limits.

    Attributes:
        limits: the defaults.
        allowed_networks: clients outside of them are refused.
        trusted_proxies: peers whose ``X-Forwarded-For`` is believed.
        role_limits: by role, limits that replace defaults; of an account's roles the most generous counts.
    """

    limits: Limits
    allowed_networks: Sequence[Network] = ()
    trusted_proxies: Sequence[Network] = ()
    role_limits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GateParts:
    """What the gate needs."""

    tokens: Tokens
    sessions: Sessions
    api_keys: ApiKeys
    roles: Roles
    rates: Rates
    quotas: Quotas
    queue: Queue
    throttle: LoginThrottle
    outbox: Outbox
    issuer: TrustedIssuer | None = None


class Gate:
    """Takes the steps in order; the first that fails refuses the request."""

    def __init__(self, parts: GateParts, options: GateOptions, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._parts = parts
        self._options = options
        self._allowed = [unwrap_network(network) for network in options.allowed_networks]
        self._trusted = [unwrap_network(network) for network in options.trusted_proxies]
        self._clock = clock
        self._purge_at = clock() + _PURGE_EVERY_S

    @property
    def queue(self) -> Queue:
        """The queue of step 7."""
        return self._parts.queue

    def admit_address(self, peer: str, forwarded_for: Sequence[str]) -> ClientAddress:
        """Step 1.

        Raises:
            PermissionRefused: the address is unknown or not on the allow-list.
        """
        address = self.find_address(peer, forwarded_for)
        if not contains(self._allowed, address):
            raise PermissionRefused(f"address {address} is not on the list")
        return address

    def find_address(self, peer: str, forwarded_for: Sequence[str]) -> ClientAddress:
        """The client's address, allowed or not, for the log.

        Raises:
            PermissionRefused: see :func:`chatsvc.guard.address.client_address`.
        """
        return client_address(peer, forwarded_for, self._trusted)

    def authenticate(self, credentials: Credentials, requirement: Requirement) -> Principal | None:
        """Steps 2 and 3. None for a public route: its credentials are not looked at.

        Raises:
            AuthenticationFailed: no credential, several, or an invalid one.
            PermissionRefused: the scope is missing.
            StoreUnavailable: it is unknown whether the credential was revoked.
        """
        if requirement.kind == "public":
            return None
        principal = self._principal(credentials, "refresh" if requirement.refresh else "access")  # (2)
        self.housekeep()
        will_do = {requirement.scope, requirement.other_scope}
        if requirement.scope is not None and not will_do & principal.scopes:  # (3)
            raise PermissionRefused(f"{principal.name} lacks scope {requirement.scope}")
        return principal

    def admit(self, principal: Principal) -> Admission:
        """Steps 5 to 7.

        Raises:
            LimitExceeded: the account's or the key's rate, quota or number of requests at a time is used up.
            Overloaded: the queue is full.
            StoreUnavailable: rate or quota are unknown.
        """
        limits = self._limits_of(principal)
        try:
            rate = self._parts.rates.hit(_rates(principal, limits))  # (5)
        except LimitExceeded as error:
            error.headers.update(limits_headers(self._standing(principal)))
            raise
        buckets = _buckets(principal, limits)  # (6)
        standing = Standing(rate, self._parts.quotas.state(buckets))
        if standing.quota.remaining <= 0:
            refused = self._parts.quotas.exceeded()
            refused.headers.update(limits_headers(standing))
            raise refused
        try:
            ticket = self._parts.queue.enter(  # (7)
                principal.account_id,
                max_own=limits.max_concurrent,
                key_id=principal.key_id,
                max_of_key=principal.key_limits.max_concurrent,
            )
        except LimitExceeded as error:
            error.headers.update(limits_headers(standing))
            raise
        return Admission(principal, ticket, standing, self._parts.quotas, buckets, self.is_revoked)

    def is_revoked(self, principal: Principal) -> bool:
        """Whether a running request's credential was revoked, or its account disabled, since step 2.

        Raises:
            StoreUnavailable: it is unknown.
        """
        if principal.key_id is not None:
            key = self._parts.api_keys.state(principal.key_id)
            return key is None or not self._parts.api_keys.is_alive(key)
        if principal.sid is None:
            account = self._parts.sessions.account_state(principal.account_id)
            return account is None or account.disabled_at is not None
        session = self._parts.sessions.state(principal.sid)
        return session is None or session.revoked_at is not None or session.disabled_at is not None

    def standing(self, principal: Principal) -> tuple[dict[str, int], dict[str, int]]:
        """A principal's limits, and what is left of each, as ``/me`` shows them."""
        standing = self._standing(principal)
        max_concurrent, num_free = self._concurrency_left(principal)
        limits = {
            "requests_per_minute": standing.rate.limit,
            "tokens_per_day": standing.quota.limit,
            "concurrent_requests": max_concurrent,
        }
        remaining = {
            "requests_per_minute": standing.rate.remaining,
            "tokens_per_day": standing.quota.remaining,
            "concurrent_requests": num_free,
        }
        return limits, remaining

    def _principal(self, credentials: Credentials, kind: Kind) -> Principal:
        given = [*credentials.authorization, *credentials.api_key]
        if len(given) != 1:
            raise AuthenticationFailed("no credentials" if not given else "several credentials")
        if credentials.api_key:
            return self._principal_of_key(given[0])
        scheme, _, token = given[0].partition(" ")
        token = token.strip(" ")
        if scheme.lower() != "bearer":  # RFC 9110 11.1: schemes are case-insensitive
            raise AuthenticationFailed("not a bearer token")
        if token.startswith(PREFIX) and kind == "access":
            return self._principal_of_key(token)
        try:
            return self._principal_of_token(token, kind)
        except AuthenticationFailed:
            if self._parts.issuer is None or kind == "refresh":
                raise
            return self._principal_of_issuer(self._parts.issuer.check_bearer(token))

    def _principal_of_token(self, token: str, kind: Kind) -> Principal:
        claims = self._parts.tokens.check(token, kind)
        row = self._parts.sessions.state(claims.sid)
        if row is None or row.account_id != claims.sub:
            raise AuthenticationFailed("no such session")
        if row.revoked_at is not None or row.disabled_at is not None:
            raise AuthenticationFailed("session ended or account disabled")
        return replace(self._account_of(row), sid=claims.sid, jti=claims.jti, expires_at=claims.exp)

    def _principal_of_issuer(self, found: BearerAccount) -> Principal:
        row = self._parts.sessions.account_state(found.account_id)
        if row is None or row.disabled_at is not None:
            raise AuthenticationFailed("account disabled")
        return replace(self._account_of(row), expires_at=found.expires_at)

    def _principal_of_key(self, text: str) -> Principal:
        row = self._parts.api_keys.check(text)
        return replace(
            self._account_of(row),
            scopes=self._parts.api_keys.scopes_of(row),
            key_id=row.id,
            expires_at=int(row.expires_at) if row.expires_at is not None else None,
            key_limits=KeyLimits(row.key_requests_per_minute, row.key_tokens_per_day, row.key_max_concurrent),
        )

    def _account_of(self, row: AnyRow) -> Principal:
        """The principal of an account; callers add the credential's own fields."""
        roles = parse_names(row.roles)
        return Principal(
            account_id=row.account_id,
            name=row.name,
            roles=roles,
            scopes=self._parts.roles.scopes_of(roles),
            limits=self._limits(row, roles),
        )

    def _limits(self, row: AnyRow, roles: Sequence[str]) -> Limits:
        """Each limit: the account's own, else the highest of its roles', else the default."""
        by_role = [self._options.role_limits[role] for role in roles if role in self._options.role_limits]

        def one(name: str) -> int:
            own = getattr(row, name)
            if own is not None:
                return int(own)
            default: int = getattr(self._options.limits, name)
            return max((of_role[name] for of_role in by_role if name in of_role), default=default)

        return Limits(one("requests_per_minute"), one("tokens_per_day"), one("max_concurrent"))

    def _limits_of(self, principal: Principal) -> Limits:
        return principal.limits or self._options.limits

    def _standing(self, principal: Principal) -> Standing:
        limits = self._limits_of(principal)
        rate = self._parts.rates.state(_rates(principal, limits))
        return Standing(rate, self._parts.quotas.state(_buckets(principal, limits)))

    def _concurrency_left(self, principal: Principal) -> tuple[int, int]:
        """The limit of requests at a time (the account's or the key's) with fewer left, and how many are left."""
        tickets, of_key = self.queue.tickets_of(principal.account_id), principal.key_limits.max_concurrent
        counts = [(self._limits_of(principal).max_concurrent, len(tickets))]
        if of_key is not None:
            counts.append((of_key, sum(ticket.key_id == principal.key_id for ticket in tickets)))
        limit, num_held = min(counts, key=lambda count: count[0] - count[1])
        return limit, max(0, limit - num_held)

    def housekeep(self) -> None:
        """Drain the outbox and, once a minute, delete old rows. Runs with authenticated requests."""
        # A failure does not refuse this request; a later one tries again.
        with suppress(AuditUnavailable, StoreUnavailable):
            self._parts.outbox.drain_if_due()
            if self._clock() >= self._purge_at:
                self._purge_at = self._clock() + _PURGE_EVERY_S
                self._parts.sessions.purge()
                self._parts.throttle.purge()
                self._parts.quotas.purge()


def _buckets(principal: Principal, limits: Limits) -> list[Bucket]:
    """The buckets that a principal's tokens are counted in: its key's, if that has a quota, and its account's."""
    own = principal.key_limits.tokens_per_day
    of_key = [Bucket(f"key:{principal.key_id}", own)] if own is not None else []
    return [*of_key, Bucket(f"account:{principal.account_id}", limits.tokens_per_day)]


def _rates(principal: Principal, limits: Limits) -> list[tuple[str, int]]:
    """The key's limit first: requests that it refuses do not count for the account."""
    own = principal.key_limits.requests_per_minute
    of_key = [(f"key:{principal.key_id}", own)] if own is not None else []
    return [*of_key, (f"account:{principal.account_id}", limits.requests_per_minute)]
