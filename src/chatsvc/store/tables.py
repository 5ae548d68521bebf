"""The tables, portable between SQLite and PostgreSQL. Knows nothing about who reads or writes them.

Times are Unix seconds as floats; ids are text.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Double, ForeignKey, Index, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

_ID = String(64)
_NAME = String(128)


class Base(DeclarativeBase):
    """The metadata of all tables."""


class Account(Base):
    """A person or a tool.

    Attributes:
        password_hash: empty if a directory or a provider checks the password.
        roles: names, separated by spaces.
        source: ``local``, ``ldap`` or ``oidc``.
        name_key: the form in which names are compared; accounts of older versions that share it have ``#`` and their id
            appended.
        authority, subject: the external authority of the account, and the person's unchanging id there.
    """

    __tablename__ = "accounts"
    __table_args__ = (
        Index("ix_accounts_name_key", "name_key", unique=True),
        Index("ix_accounts_subject", "authority", "subject", unique=True),
    )

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    name: Mapped[str] = mapped_column(_NAME, unique=True)
    password_hash: Mapped[str] = mapped_column(Text)
    roles: Mapped[str] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(Double)
    password_changed_at: Mapped[float] = mapped_column(Double)
    disabled_at: Mapped[float | None] = mapped_column(Double)
    requests_per_minute: Mapped[int | None] = mapped_column(Integer)
    tokens_per_day: Mapped[int | None] = mapped_column(BigInteger)
    max_concurrent: Mapped[int | None] = mapped_column(Integer)
    source: Mapped[str] = mapped_column(String(16), default="local")
    name_key: Mapped[str | None] = mapped_column(String(256))
    authority: Mapped[str | None] = mapped_column(String(255))
    subject: Mapped[str | None] = mapped_column(String(255))


class Session(Base):
    """A token family: one login, and all tokens refreshed from it. It has ended once ``revoked_at`` is set.

    ``network`` (column ``place``) is the address as the login throttle counts it: a /64 for IPv6.
    """

    __tablename__ = "sessions"
    __table_args__ = (Index("ix_sessions_account", "account_id", "revoked_at"), Index("ix_sessions_ends", "ends_at"))

    sid: Mapped[str] = mapped_column(_ID, primary_key=True)
    account_id: Mapped[str] = mapped_column(_ID, ForeignKey("accounts.id", ondelete="CASCADE"))
    address: Mapped[str] = mapped_column(_ID)
    created_at: Mapped[float] = mapped_column(Double)
    last_used_at: Mapped[float] = mapped_column(Double)
    ends_at: Mapped[float] = mapped_column(Double)
    revoked_at: Mapped[float | None] = mapped_column(Double)
    revoked_why: Mapped[str | None] = mapped_column(_ID)
    network: Mapped[str | None] = mapped_column("place", _ID)


class RefreshToken(Base):
    """A refresh token. The refresh that spends it sets ``successor``, the ``jti`` of the next one."""

    __tablename__ = "refresh_tokens"
    __table_args__ = (Index("ix_refresh_tokens_sid", "sid"),)

    jti: Mapped[str] = mapped_column(_ID, primary_key=True)
    sid: Mapped[str] = mapped_column(_ID, ForeignKey("sessions.sid", ondelete="CASCADE"))
    issued_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int] = mapped_column(BigInteger)
    spent_at: Mapped[float | None] = mapped_column(Double)
    spent_from: Mapped[str | None] = mapped_column(_ID)
    successor: Mapped[str | None] = mapped_column(_ID)


class ApiKey(Base):
    """An API key. Only the SHA-256 of its secret is stored; after a rotation also the old one's, for a grace period."""

    __tablename__ = "api_keys"
    __table_args__ = (Index("ix_api_keys_account", "account_id"),)

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    account_id: Mapped[str] = mapped_column(_ID, ForeignKey("accounts.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(_NAME)
    secret_sha256: Mapped[str] = mapped_column(_ID)
    old_secret_sha256: Mapped[str | None] = mapped_column(_ID)
    old_secret_until: Mapped[float | None] = mapped_column(Double)
    scopes: Mapped[str] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(Double)
    expires_at: Mapped[float | None] = mapped_column(Double)
    last_used_at: Mapped[float | None] = mapped_column(Double)
    revoked_at: Mapped[float | None] = mapped_column(Double)
    requests_per_minute: Mapped[int | None] = mapped_column(Integer)
    tokens_per_day: Mapped[int | None] = mapped_column(BigInteger)
    max_concurrent: Mapped[int | None] = mapped_column(Integer)


class Usage(Base):
    """Tokens of one bucket (an account or a key) on one UTC day, used or reserved. ``day`` counts from 1970-01-01."""

    __tablename__ = "usage"

    bucket: Mapped[str] = mapped_column(_NAME, primary_key=True)
    day: Mapped[int] = mapped_column(Integer, primary_key=True)
    num_tokens: Mapped[int] = mapped_column(BigInteger)


class Reservation(Base):
    """Tokens reserved for one generation until it is settled; they are counted in :class:`Usage` already."""

    __tablename__ = "reservations"
    __table_args__ = (Index("ix_reservations_expires", "expires_at"),)

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    buckets: Mapped[str] = mapped_column(Text)
    day: Mapped[int] = mapped_column(Integer)
    num_tokens: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[float] = mapped_column(Double)


class LoginFailure(Base):
    """Failed logins of one attempted name (as an HMAC) from one network, or from anywhere (``address`` is ``*``)."""

    __tablename__ = "login_failures"
    __table_args__ = (Index("ix_login_failures_last", "last_at"),)

    name_hmac: Mapped[str] = mapped_column(_ID, primary_key=True)
    address: Mapped[str] = mapped_column(_ID, primary_key=True)
    num_failures: Mapped[int] = mapped_column(Integer)
    first_at: Mapped[float] = mapped_column(Double)
    last_at: Mapped[float] = mapped_column(Double)
    wait_until: Mapped[float] = mapped_column(Double)


class OutboxRecord(Base):
    """The record of an administrative act, stored in the act's transaction, until it is in the audit log."""

    __tablename__ = "audit_outbox"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    at: Mapped[float] = mapped_column(Double)
    action: Mapped[str] = mapped_column(_ID)
    actor: Mapped[str] = mapped_column(_NAME)
    details: Mapped[str] = mapped_column(Text)


class Conversation(Base):
    """A conversation of an account."""

    __tablename__ = "conversations"
    __table_args__ = (Index("ix_conversations_account", "account_id", "updated_at"),)

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    account_id: Mapped[str] = mapped_column(_ID, ForeignKey("accounts.id", ondelete="CASCADE"))
    title: Mapped[str] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(Double)
    updated_at: Mapped[float] = mapped_column(Double)


class ConversationMessage(Base):
    """A message of a conversation; ``position`` counts from 0. The only table that holds prompts and answers."""

    __tablename__ = "conversation_messages"
    __table_args__ = (UniqueConstraint("conversation_id", "position"),)

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    conversation_id: Mapped[str] = mapped_column(_ID, ForeignKey("conversations.id", ondelete="CASCADE"))
    position: Mapped[int] = mapped_column(Integer)
    role: Mapped[str] = mapped_column(String(16))
    content: Mapped[str] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(Double)
    num_tokens: Mapped[int | None] = mapped_column(Integer)
    complete: Mapped[bool] = mapped_column(Boolean, default=True)
