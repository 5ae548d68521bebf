"""Builds the guard from plain values, for the web process and the command line alike.

Knows nothing about where the values come from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chatsvc.guard.accounts.accounts import Accounts
from chatsvc.guard.accounts.external import Directory, ExternalAccounts, TrustedIssuer
from chatsvc.guard.accounts.login import Login
from chatsvc.guard.accounts.passwords import PasswordOptions, Passwords
from chatsvc.guard.accounts.roles import DEFAULT_ROLES, Roles
from chatsvc.guard.accounts.throttle import LoginThrottle
from chatsvc.guard.credentials.api_keys import ApiKeys
from chatsvc.guard.credentials.keyring import KeyRing, read_or_make_secret
from chatsvc.guard.credentials.sessions import Sessions
from chatsvc.guard.credentials.tokens import TokenOptions, Tokens
from chatsvc.guard.gate import Gate, GateOptions, GateParts
from chatsvc.guard.limits.queue import Queue
from chatsvc.guard.limits.quotas import Quotas
from chatsvc.guard.limits.rates import Rates
from chatsvc.guard.outbox import Change, OnChange, Outbox, Recorder, note_nothing, put_into_outbox
from chatsvc.store.database import Database
from chatsvc.store.migrate import migrate


@dataclass(frozen=True, slots=True)
class GuardOptions:
    """The guard's settings."""

    store_url: str
    keys_directory: Path
    gate: GateOptions
    algorithm: str = "HS256"
    tokens: TokenOptions = field(default_factory=TokenOptions)
    refresh_absolute_s: int = 604_800
    passwords: PasswordOptions = field(default_factory=PasswordOptions)
    roles: Mapping[str, Sequence[str]] = field(default_factory=lambda: DEFAULT_ROLES)
    redis_url: str | None = None


@dataclass(frozen=True, slots=True)
class Guard:
    """The guard's parts on an open database."""

    database: Database
    ring: KeyRing
    tokens: Tokens
    roles: Roles
    passwords: Passwords
    accounts: Accounts
    external_accounts: ExternalAccounts
    sessions: Sessions
    api_keys: ApiKeys
    throttle: LoginThrottle
    login: Login
    quotas: Quotas
    rates: Rates
    on_change: OnChange

    def gate(
        self, options: GuardOptions, queue: Queue, record: Recorder, *, issuer: TrustedIssuer | None = None
    ) -> Gate:
        """A gate on these parts. ``record`` makes an administrative record durable in the audit log."""
        parts = GateParts(
            tokens=self.tokens,
            sessions=self.sessions,
            api_keys=self.api_keys,
            roles=self.roles,
            rates=self.rates,
            quotas=self.quotas,
            queue=queue,
            throttle=self.throttle,
            outbox=Outbox(self.database, record),
            issuer=issuer,
        )
        return Gate(parts, options.gate)

    def rotate_signing_key(self) -> str:
        """Make a new signing key that signs from now on; returns its ``kid``. Recorded as an administrative act."""
        kid = self.ring.rotate()
        with self.database.session() as session:
            self.on_change(session, "admin.signing_key.rotate", Change(None, {"kid": kid}))
        return kid

    def close(self) -> None:
        """Close the database."""
        self.database.close()


def assemble(
    options: GuardOptions,
    *,
    directory: Callable[[ExternalAccounts], Directory] | None = None,
    on_change: OnChange = note_nothing,
    clock: Callable[[], float] = time.time,
) -> Guard:
    """Open the database, migrate it, read the keys, and build the parts.

    Args:
        options: the settings.
        directory: makes the LDAP directory, if there is one.
        on_change: called with every administrative change.
        clock: Unix seconds.

    Raises:
        StoreUnavailable: the database cannot be reached.
        OperatorError: a key file is unusable.
    """
    database = Database(options.store_url)
    migrate(database)
    keep_s = options.tokens.refresh_idle_s + options.tokens.leeway_s
    ring = KeyRing(options.keys_directory, options.algorithm, keep_s=keep_s, clock=clock)
    tokens = Tokens(ring, options.tokens, clock=clock)
    roles = Roles(options.roles)
    passwords = Passwords(options.passwords)
    throttle = LoginThrottle(database, read_or_make_secret(options.keys_directory / "throttle.key"), clock=clock)
    accounts = Accounts(database, passwords, roles, on_change=on_change, clock=clock)
    # The login is recorded by itself; creating an account or changing its roles needs a record of its own.
    external_accounts = ExternalAccounts(database, accounts, roles, on_change=put_into_outbox("directory", clock=clock))
    return Guard(
        database=database,
        ring=ring,
        tokens=tokens,
        roles=roles,
        passwords=passwords,
        accounts=accounts,
        external_accounts=external_accounts,
        sessions=Sessions(database, tokens, absolute_s=options.refresh_absolute_s, on_change=on_change, clock=clock),
        api_keys=ApiKeys(database, roles, on_change=on_change, clock=clock),
        throttle=throttle,
        login=Login(database, passwords, throttle, directory(external_accounts) if directory else None),
        quotas=Quotas(database, clock=clock),
        rates=Rates(options.redis_url),
        on_change=on_change,
    )
