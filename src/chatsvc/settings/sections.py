"""The tables of ``chatsvc.toml``: every key, its type, its bounds and its default.

``config/chatsvc.toml`` documents each of them; a test keeps both in step. Knows nothing about where values come from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr
from pydantic_settings import NoDecode

from chatsvc.guard.accounts.roles import DEFAULT_ROLES
from chatsvc.guard.principal import Scope
from chatsvc.settings.sources import (
    Network,
    parse_list,
    parse_networks,
    parse_origins,
    refuse_retired_runner,
    url_check,
)

Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Networks = Annotated[list[Network], NoDecode, BeforeValidator(parse_networks)]
Origins = Annotated[list[str], NoDecode, BeforeValidator(parse_origins)]
Paths = Annotated[list[Path], NoDecode, BeforeValidator(parse_list)]

_DATABASES = ("sqlite", "postgresql", "postgresql+psycopg")
DatabaseUrl = Annotated[
    SecretStr, AfterValidator(url_check("postgresql+psycopg://user@host/name", *_DATABASES, needs_host=False))
]
RedisUrl = Annotated[
    SecretStr, AfterValidator(url_check("redis://host:6379/0", "redis", "rediss", "unix", needs_host=False))
]
LdapUrl = Annotated[str, AfterValidator(url_check("ldaps://host", "ldap", "ldaps"))]
HttpUrl = Annotated[str, AfterValidator(url_check("https://host", "http", "https"))]


class Section(BaseModel):
    """A table of the file. Unknown keys are errors, so a typo cannot leave a limit at its default."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class ServerSection(Section):
    """``[server]``: the web process."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8080
    socket: Path | None = None
    threads: Annotated[int, Field(ge=0)] = 0  # 0: Settings.least_threads
    drain_timeout_s: Seconds = 30
    keep_alive_s: Annotated[float, Field(ge=0)] = 10
    max_body_bytes: Count | Literal["auto"] = "auto"
    cors_origins: Origins = []


class GuardSection(Section):
    """``[guard]``: who may connect; by default nobody."""

    allowed_networks: Networks = []
    trusted_proxies: Networks = []
    scraper_networks: Networks = []


class TokensSection(Section):
    """``[tokens]``: JWT. Signing keys are made in ``CHATSVC_HOME/keys`` at first use; none has a default."""

    algorithm: Literal["HS256", "EdDSA"] = "HS256"
    issuer: str = "chatsvc"
    audience: str = "chatsvc"
    access_lifetime_s: Count = 600
    refresh_idle_s: Count = 86_400
    refresh_absolute_s: Count = 604_800
    leeway_s: Annotated[int, Field(ge=0)] = 30


class AccountsSection(Section):
    """``[accounts]``: password hashing and roles."""

    argon2_memory_kib: Annotated[int, Field(ge=8192)] = 19_456
    argon2_time_cost: Count = 3
    argon2_parallelism: Count = 1
    max_parallel_hashes: Count = 2
    roles: dict[str, list[Scope]] = {role: list(scopes) for role, scopes in DEFAULT_ROLES.items()}


class RoleLimits(Section):
    """Limits of one role instead of the defaults; of several roles the highest limit counts."""

    requests_per_minute: Count | None = None
    tokens_per_day: Count | None = None
    max_concurrent: Count | None = None


class LimitsSection(Section):
    """``[limits]``: limits of one principal, and of the queue."""

    requests_per_minute: Count = 600
    tokens_per_day: Count = 5_000_000
    max_concurrent_per_principal: Count = 64
    max_waiting: Count = 96
    by_role: dict[str, RoleLimits] = {}


class ChatSection(Section):
    """``[chat]``: defaults and bounds of a completion."""

    system_prompt: str = ""
    default_max_tokens: Count = 512
    max_tokens_cap: Count = 4096
    default_temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    default_top_p: Annotated[float, Field(gt=0, le=1)] = 0.8
    default_repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.1
    deadline_s: Seconds = 300


class OpenAISection(Section):
    """``[openai]``: how strict ``/v1`` is."""

    unknown_fields: Literal["ignore", "refuse"] = "ignore"


class EngineSection(Section):
    """``[engine]``: the process that holds the model."""

    runner: Annotated[Literal["auto", "native", "openvino", "torch"], BeforeValidator(refuse_retired_runner)] = "auto"
    socket: Path | None = None
    max_num_seqs: Count = 16
    cache_size_gb: Annotated[float, Field(gt=0)] = 1.0
    prefill_chunk_tokens: Annotated[int, Field(ge=32)] = 256
    max_gap_ms: Count = 220
    memory_limit_mb: Annotated[int, Field(ge=0)] = 0
    max_draft_tokens: Annotated[int, Field(ge=0, le=32)] = 7
    dynamic_quantization_group: Literal[0, 32, 64, 128] = 32
    num_threads: Annotated[int, Field(ge=0)] = 0
    stall_timeout_s: Seconds = 30
    load_timeout_s: Seconds = 600


class ModelsSection(Section):
    """``[models]``: the model store. ``kek_file`` holds 32 raw bytes."""

    directory: Path | None = None
    kek_file: Path | None = None
    offline: bool = False


class AuditSection(Section):
    """``[audit]``: the audit log. No key turns it off."""

    directory: Path | None = None
    checkpoint_records: Count = 256
    checkpoint_interval_s: Seconds = 60
    origin: str = "chatsvc.local/audit"
    segment_bytes: Annotated[int, Field(ge=65_536)] = 64 * 1024 * 1024
    segment_age_s: Seconds = 86_400
    epoch_s: Annotated[int, Field(ge=1)] = 900
    level: Literal["metadata", "redacted", "sealed"] = "metadata"
    auditor_key_file: Path | None = None
    second_directory: Path | None = None
    witness_files: Paths = []
    witness_syslog: Path | None = None
    witness_url: DatabaseUrl | None = None
    witness_peer_url: HttpUrl | None = None
    witness_peer_key: SecretStr | None = None
    witness_peer_ca_file: Path | None = None
    witnessed_keys_file: Path | None = None
    space_alarm: Annotated[float, Field(gt=0, le=1)] = 0.8


class StoreSection(Section):
    """``[store]``: the database; ``url`` may hold a password, so it is a secret."""

    url: DatabaseUrl | None = None
    redis_url: RedisUrl | None = None


class LdapSection(Section):
    """``[ldap]``: accounts of a directory, if ``url`` is set."""

    url: LdapUrl | None = None
    start_tls: bool = False
    ca_file: Path | None = None
    bind_dn: str = ""
    bind_password: SecretStr | None = None
    user_base: str = ""
    user_filter: str = "(uid={name})"
    group_base: str = ""
    group_filter: str = "(member={dn})"
    roles: dict[str, str] = {}


class OidcSection(Section):
    """``[oidc]``: accounts of an OpenID provider, if ``issuer`` is set."""

    issuer: HttpUrl | None = None
    client_id: str = "chatsvc"
    client_secret: SecretStr | None = None
    ca_file: Path | None = None
    redirect_url: str = ""
    scopes: list[str] = ["openid", "profile"]
    name_claim: str = "preferred_username"
    groups_claim: str = "groups"
    roles: dict[str, str] = {}
    api_audience: str = ""


class LogsSection(Section):
    """``[logs]``: the operational log (JSON lines on standard error); never a prompt."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
