"""The tables. Times are Unix seconds as floats, ids are text; knows nothing about who reads or writes them.

Portable between SQLite and PostgreSQL: no column type and no default here is special to either.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Double, ForeignKey, Index, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

_ID = String(64)
_NAME = String(128)


class Base(DeclarativeBase):
    """Holds the metadata of all tables."""


class Account(Base):
    """Who may log in. ``roles`` are names with spaces between; ``password_hash`` is empty where a directory decides.

    ``name_key`` is what all spellings of the name have in common; accounts of older versions that share one have their
    id behind it. ``authority`` and ``subject`` say who vouches for the account, and what that authority cannot change.
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
    """A token family: one login and everything that was refreshed out of it. It is dead once ``revoked_at`` is set.

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
    """One refresh token of a family; ``successor`` is set by the one refresh that wins."""

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
    """A key for a tool. Only the SHA-256 of its secret is here; the old one lives on for a while after a rotation."""

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
    """Tokens of one bucket (an account, a key) on one UTC day; ``num_tokens`` holds what is reserved as well."""

    __tablename__ = "usage"

    bucket: Mapped[str] = mapped_column(_NAME, primary_key=True)
    day: Mapped[int] = mapped_column(Integer, primary_key=True)
    num_tokens: Mapped[int] = mapped_column(BigInteger)


class Reservation(Base):
    """Tokens set aside for one generation until it is settled; one that is never settled counts in full."""

    __tablename__ = "reservations"
    __table_args__ = (Index("ix_reservations_expires", "expires_at"),)

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    buckets: Mapped[str] = mapped_column(Text)
    day: Mapped[int] = mapped_column(Integer)
    num_tokens: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[float] = mapped_column(Double)


class LoginFailure(Base):
    """Failed logins of one (attempted name, address), or of one name from anywhere; the name is a keyed hash."""

    __tablename__ = "login_failures"
    __table_args__ = (Index("ix_login_failures_last", "last_at"),)

    name_hmac: Mapped[str] = mapped_column(_ID, primary_key=True)
    address: Mapped[str] = mapped_column(_ID, primary_key=True)
    num_failures: Mapped[int] = mapped_column(Integer)
    first_at: Mapped[float] = mapped_column(Double)
    last_at: Mapped[float] = mapped_column(Double)
    wait_until: Mapped[float] = mapped_column(Double)


class OutboxRecord(Base):
    """An administrative act that is not in the audit log yet: written with the act itself, in one transaction."""

    __tablename__ = "audit_outbox"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    at: Mapped[float] = mapped_column(Double)
    action: Mapped[str] = mapped_column(_ID)
    actor: Mapped[str] = mapped_column(_NAME)
    details: Mapped[str] = mapped_column(Text)


class Conversation(Base):
    """One conversation of one account."""

    __tablename__ = "conversations"
    __table_args__ = (Index("ix_conversations_account", "account_id", "updated_at"),)

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    account_id: Mapped[str] = mapped_column(_ID, ForeignKey("accounts.id", ondelete="CASCADE"))
    title: Mapped[str] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(Double)
    updated_at: Mapped[float] = mapped_column(Double)


class ConversationMessage(Base):
    """One turn of a conversation; ``position`` counts from 0. The only place that holds a prompt."""

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
