"""Configuration: ``chatsvc.toml`` + environment + ``*_FILE``. The only module that reads ``os.environ``.

A key is looked for in ``CHATSVC_SECTION__KEY``, then ``CHATSVC_SECTION__KEY_FILE`` (the file's content, for secrets),
then the TOML file, then the default here. ``config/chatsvc.toml`` documents every key; a test keeps both in step.
Knows nothing about who uses a value.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
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

Network = IPv4Network | IPv6Network
Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]

_PREFIX = "CHATSVC_"


def _from_json_text(value: Any) -> Any:
    """Lists come from the environment as JSON text."""
    return json.loads(value) if isinstance(value, str) else value


Networks = Annotated[list[Network], NoDecode, BeforeValidator(_from_json_text)]


class Section(BaseModel):
    """A table of the file. Unknown keys are errors: a typo must not silently leave a limit at its default."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class ServerSection(Section):
    """``[server]``: the listening side."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8080
    socket: Path | None = None
    threads: Count = 160
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


class LimitsSection(Section):
    """``[limits]``: what one principal may use, and how much may wait in all."""

    requests_per_minute: Count = 600
    tokens_per_day: Count = 5_000_000
    max_concurrent_per_principal: Count = 64
    max_waiting: Count = 96


class ChatSection(Section):
    """``[chat]``: defaults and bounds of a completion."""

    system_prompt: str = ""
    default_max_tokens: Count = 512
    max_tokens_cap: Count = 4096
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
    env = dict(os.environ if environ is None else environ)
    home = Path(env.get(f"{_PREFIX}HOME") or "var").absolute()
    problems: list[str] = []
    from_file = _read_toml(env.pop(f"{_PREFIX}CONFIG", None), home, problems)
    from_environment = _with_files(env, problems)

    class _Loaded(Settings):
        """Settings with this call's two sources, the environment first."""

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *_: PydanticBaseSettingsSource, **__: PydanticBaseSettingsSource
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            environment = EnvSettingsSource(
                settings_cls, env_prefix=_PREFIX, env_nested_delimiter="__", case_sensitive=False
            )
            environment.env_vars = {name.lower(): value for name, value in from_environment.items()}
            return environment, InitSettingsSource(settings_cls, {**from_file, "home": home})

    try:
        loaded = _Loaded()
    except ValidationError as error:
        problems += [_sentence(problem["loc"], problem["msg"]) for problem in error.errors()]
    except SettingsError as error:
        problems.append(str(error))
    if problems:
        raise ConfigurationInvalid(problems)
    return loaded.model_copy(update={"home": home})


def _read_toml(named: str | None, home: Path, problems: list[str]) -> dict[str, Any]:
    path = Path(named) if named else home / "chatsvc.toml"
    if not named and not path.exists():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problems.append(f"{path}: {error}")
        return {}


def _with_files(env: Mapping[str, str], problems: list[str]) -> dict[str, str]:
    """``CHATSVC_X__Y_FILE`` becomes ``CHATSVC_X__Y`` with the file's content, where ``x.y`` is a secret."""
    result = {name: value for name, value in env.items() if name.startswith(_PREFIX) and "__" in name}
    for name in [name for name in result if name.removesuffix("_FILE") in _SECRETS and name.endswith("_FILE")]:
        path = result.pop(name)
        try:
            result[name.removesuffix("_FILE")] = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{name}: {error}")
    return result


def _sentence(location: tuple[int | str, ...], message: str) -> str:
    return f"{'.'.join(str(part) for part in location)}: {message}"


_SECRETS = frozenset(
    f"{_PREFIX}{section}__{key}".upper()
    for section, field in Settings.model_fields.items()
    if isinstance(field.default, Section)
    for key, inner in type(field.default).model_fields.items()
    if "SecretStr" in str(inner.annotation)
)
