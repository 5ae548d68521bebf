"""Puts the guard together out of plain values: the web process and the command line have the same one.

Knows nothing about where the values come from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chatsvc.errors import AuditUnavailable
from chatsvc.guard.accounts import Accounts
from chatsvc.guard.api_keys import ApiKeys
from chatsvc.guard.gate import Gate, GateOptions, GateParts
from chatsvc.guard.keyring import KeyRing, read_or_make_secret
from chatsvc.guard.login import Directory, Login
from chatsvc.guard.outbox import Outbox, Recorder
from chatsvc.guard.passwords import PasswordOptions, Passwords
from chatsvc.guard.quotas import Quotas
from chatsvc.guard.rates import Rates
from chatsvc.guard.roles import DEFAULT_ROLES, Roles
from chatsvc.guard.room import Room
from chatsvc.guard.sessions import Sessions
from chatsvc.guard.throttle import LoginThrottle
from chatsvc.guard.tokens import TokenOptions, Tokens
from chatsvc.store.database import Database
from chatsvc.store.migrate import migrate


@dataclass(frozen=True, slots=True)
class GuardOptions:
    """Everything the guard is told."""

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
    """The parts, ready."""

    database: Database
    ring: KeyRing
    tokens: Tokens
    roles: Roles
    passwords: Passwords
    accounts: Accounts
    sessions: Sessions
    api_keys: ApiKeys
    throttle: LoginThrottle
    login: Login
    quotas: Quotas

    def gate(self, options: GuardOptions, room: Room, record: Recorder) -> Gate:
        """The gate in front of them. ``record`` makes an administrative record durable in the audit log."""
        parts = GateParts(
            tokens=self.tokens,
            sessions=self.sessions,
            api_keys=self.api_keys,
            roles=self.roles,
            rates=Rates(options.redis_url),
            quotas=self.quotas,
            room=room,
            throttle=self.throttle,
            outbox=Outbox(self.database, record),
        )
        return Gate(parts, options.gate)

    def close(self) -> None:
        """Close the database."""
        self.database.close()


def assemble(
    options: GuardOptions, *, directory: Directory | None = None, clock: Callable[[], float] = time.time
) -> Guard:
    """Open the database (its tables are brought up to date first), the ring, and everything on top.

    Raises:
        StoreUnavailable: the database cannot be reached.
    """
    database = Database(options.store_url)
    migrate(database)
    keep_s = options.tokens.refresh_idle_s + options.tokens.leeway_s
    ring = KeyRing(options.keys_directory, options.algorithm, keep_s=keep_s, clock=clock)
    tokens = Tokens(ring, options.tokens, clock=clock)
    roles = Roles(options.roles)
    passwords = Passwords(options.passwords)
    throttle = LoginThrottle(database, read_or_make_secret(options.keys_directory / "throttle.key"), clock=clock)
    return Guard(
        database=database,
        ring=ring,
        tokens=tokens,
        roles=roles,
        passwords=passwords,
        accounts=Accounts(database, passwords, roles, clock=clock),
        sessions=Sessions(database, tokens, absolute_s=options.refresh_absolute_s, clock=clock),
        api_keys=ApiKeys(database, roles, clock=clock),
        throttle=throttle,
        login=Login(database, passwords, throttle, directory),
        quotas=Quotas(database, clock=clock),
    )


def no_log(_action: str, _actor: str, _details: Mapping[str, Any]) -> None:
    """The recorder of a process that does not hold the audit log: records stay in the outbox."""
    raise AuditUnavailable
