"""Configuration: ``chatsvc.toml`` + environment + ``*_FILE``. The only module that reads ``os.environ``.

A key is looked for in ``CHATSVC_SECTION__KEY``, then ``CHATSVC_SECTION__KEY_FILE`` (the file's content, for secrets),
then the TOML file, then the default here. ``config/chatsvc.toml`` documents every key; a test keeps both in step.
Knows nothing about who uses a value.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from chatsvc.errors import ConfigurationInvalid
from chatsvc.settings_sources import PREFIX, Network, parse_networks, read_environment, read_toml, sentence

Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Networks = Annotated[list[Network], NoDecode, BeforeValidator(parse_networks)]

# Threads of the web process beyond one for each running and each waiting request: health, logins, refusals.
_SPARE_THREADS = 48
_LEAST_SPARE_THREADS = 8
_MAX_KEEP_ALIVE_S = 60  # nginx gives a silent upstream 75 s


class Section(BaseModel):
    """A table of the file. Unknown keys are errors: a typo must not silently leave a limit at its default."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class ServerSection(Section):
    """``[server]``: the listening side."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8080
    socket: Path | None = None
    threads: Annotated[int, Field(ge=0)] = 0  # 0: one for each running and waiting request, and some to spare
    drain_timeout_s: Seconds = 30
    keep_alive_s: Annotated[float, Field(ge=0)] = 10
    max_body_bytes: Count = 65536


class GuardSection(Section):
    """``[guard]``: who may connect. Nothing is on the list by default."""

    allowed_networks: Networks = []
    trusted_proxies: Networks = []
    scraper_networks: Networks = []


class TokensSection(Section):
    """``[tokens]``: JWT. Signing keys live in ``CHATSVC_HOME/keys``, made on first use; none has a default."""

    algorithm: Literal["HS256", "EdDSA"] = "HS256"
    issuer: str = "chatsvc"
    audience: str = "chatsvc"
    access_lifetime_s: Count = 600
    refresh_idle_s: Count = 86_400
    refresh_absolute_s: Count = 604_800
    leeway_s: Annotated[int, Field(ge=0)] = 30


class AccountsSection(Section):
    """``[accounts]``: passwords and the login throttle."""

    argon2_memory_kib: Annotated[int, Field(ge=8192)] = 19_456
    argon2_time_cost: Count = 3
    argon2_parallelism: Count = 1
    max_parallel_hashes: Count = 2
    roles: dict[str, list[Literal["chat", "metrics", "audit", "admin"]]] = {
        "viewer": ["metrics"],
        "user": ["chat"],
        "operator": ["chat", "metrics"],
        "auditor": ["audit"],
        "admin": ["admin", "audit", "chat", "metrics"],
    }


class RoleLimits(Section):
    """What one role may use instead of the default; of several roles the most generous counts."""

    requests_per_minute: Count | None = None
    tokens_per_day: Count | None = None
    max_concurrent: Count | None = None


class LimitsSection(Section):
    """``[limits]``: what one principal may use, and how much may wait in all."""

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
    default_temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    deadline_s: Seconds = 300


class EngineSection(Section):
    """``[engine]``: the process that holds the model."""

    runner: Literal["auto", "openvino", "torch"] = "auto"
    socket: Path | None = None
    max_num_seqs: Count = 16
    cache_size_gb: Annotated[float, Field(gt=0)] = 1.0
    prefill_chunk_tokens: Count = 256
    num_threads: Annotated[int, Field(ge=0)] = 0
    stall_timeout_s: Seconds = 30


class ModelsSection(Section):
    """``[models]``: where models live. ``kek_file`` holds 32 raw bytes."""

    directory: Path | None = None
    kek_file: Path | None = None
    offline: bool = False


class AuditSection(Section):
    """``[audit]``: the log. There is no key that turns it off."""

    directory: Path | None = None
    checkpoint_records: Count = 256
    checkpoint_interval_s: Seconds = 60
    origin: str = "chatsvc.local/audit"


class StoreSection(Section):
    """``[store]``: the database; ``url`` may hold a password, so it is a secret."""

    url: SecretStr | None = None
    redis_url: SecretStr | None = None


class LogsSection(Section):
    """``[logs]``: the operational log (JSON lines on standard error); never a prompt."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


class Settings(BaseSettings):
    """All of it. Make one with :func:`load`; give rooms the values they need, never the whole."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    home: Path = Path("var")
    server: ServerSection = ServerSection()
    guard: GuardSection = GuardSection()
    tokens: TokensSection = TokensSection()
    accounts: AccountsSection = AccountsSection()
    limits: LimitsSection = LimitsSection()
    chat: ChatSection = ChatSection()
    engine: EngineSection = EngineSection()
    models: ModelsSection = ModelsSection()
    audit: AuditSection = AuditSection()
    store: StoreSection = StoreSection()
    logs: LogsSection = LogsSection()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """Refuse values that fit one by one and not together."""
        busy = self.limits.max_waiting + self.engine.max_num_seqs
        rules = (
            (
                self.tokens.refresh_idle_s > self.tokens.access_lifetime_s,
                "tokens.refresh_idle_s must be more than tokens.access_lifetime_s",
            ),
            (
                self.tokens.refresh_absolute_s >= self.tokens.refresh_idle_s,
                "tokens.refresh_absolute_s must be at least tokens.refresh_idle_s",
            ),
            (
                self.chat.max_tokens_cap >= self.chat.default_max_tokens,
                "chat.max_tokens_cap must be at least chat.default_max_tokens",
            ),
            (
                not self.server.threads or self.server.threads >= busy + _LEAST_SPARE_THREADS,
                f"server.threads must be 0 or at least {busy + _LEAST_SPARE_THREADS}",
            ),
            (
                self.server.keep_alive_s <= _MAX_KEEP_ALIVE_S,
                f"server.keep_alive_s must be at most {_MAX_KEEP_ALIVE_S}, or nginx ends silent streams",
            ),
        )
        if broken := [message for holds, message in rules if not holds]:
            raise ValueError("\n".join(broken))
        return self

    @property
    def server_threads(self) -> int:
        """Threads of the web process."""
        return self.server.threads or self.limits.max_waiting + self.engine.max_num_seqs + _SPARE_THREADS

    # Where things are when the file does not say otherwise: everything below CHATSVC_HOME.
    @property
    def engine_socket(self) -> Path:
        """The unix socket between web and engine, mode 0600."""
        return self.engine.socket or self.home / "run" / "engine.sock"

    @property
    def models_directory(self) -> Path:
        """One folder a model and ``current``, a symbolic link."""
        return self.models.directory or self.home / "models"

    @property
    def audit_directory(self) -> Path:
        """Segments and checkpoints of the audit log."""
        return self.audit.directory or self.home / "audit"

    @property
    def keys_directory(self) -> Path:
        """Signing and HMAC keys, mode 0700."""
        return self.home / "keys"

    @property
    def store_url(self) -> str:
        """The SQLAlchemy URL of the database."""
        return self.store.url.get_secret_value() if self.store.url else f"sqlite:///{self.home / 'chatsvc.db'}"


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the configuration.

    The file is ``$CHATSVC_CONFIG``, else ``$CHATSVC_HOME/chatsvc.toml`` if it is there, else none.

    Raises:
        ConfigurationInvalid: with every problem that was found, not only the first.
    """
    env = os.environ if environ is None else environ
    home = Path(env.get(f"{PREFIX}HOME") or "var").absolute()
    problems: list[str] = []
    from_file = read_toml(env.get(f"{PREFIX}CONFIG"), home, problems)
    from_environment = read_environment(env, KEYS, _SECRETS, problems)

    class _Loaded(Settings):
        """Settings with this call's two sources, the environment first."""

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *_: PydanticBaseSettingsSource, **__: PydanticBaseSettingsSource
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            environment = EnvSettingsSource(
                settings_cls, env_prefix=PREFIX, env_nested_delimiter="__", case_sensitive=False
            )
            environment.env_vars = {name.lower(): value for name, value in from_environment.items()}
            return environment, InitSettingsSource(settings_cls, {**from_file, "home": home})

    try:
        loaded = _Loaded()
    except ValidationError as error:
        found = [sentence(problem["loc"], problem["msg"], KEYS) for problem in error.errors()]
        problems += [line for text in found for line in text.split("\n")]
    except SettingsError as error:
        problems.append(str(error))
    if problems:
        raise ConfigurationInvalid(problems)
    return loaded.model_copy(update={"home": home})


def child_environment(additions: Mapping[str, str]) -> dict[str, str]:
    """The environment with additions, for a process that the command line starts."""
    return {**os.environ, **additions}


def environment_value(name: str) -> str | None:
    """A variable that is not a key of the configuration, such as ``PORT`` for ``make run``; None where empty."""
    return os.environ.get(name) or None


KEYS: Mapping[str, frozenset[str]] = {
    section: frozenset(type(field.default).model_fields)
    for section, field in Settings.model_fields.items()
    if isinstance(field.default, Section)
}

_SECRETS = frozenset(
    f"{PREFIX}{section}__{key}".upper()
    for section, field in Settings.model_fields.items()
    if isinstance(field.default, Section)
    for key, inner in type(field.default).model_fields.items()
    if "SecretStr" in str(inner.annotation)
)
