"""Configuration: ``chatsvc.toml`` + environment + ``*_FILE``. The only module that reads ``os.environ``.

A key is looked for in ``CHATSVC_SECTION__KEY``, then ``CHATSVC_SECTION__KEY_FILE`` (the file's content, for secrets),
then the TOML file, then the default in :mod:`chatsvc.settings.sections`, which defines the keys. Knows nothing about
who uses a value.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self
from urllib.parse import quote

from pydantic import ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from chatsvc.errors import ConfigurationInvalid
from chatsvc.settings.sections import (
    AccountsSection,
    AuditSection,
    ChatSection,
    EngineSection,
    GuardSection,
    LdapSection,
    LimitsSection,
    LogsSection,
    ModelsSection,
    OidcSection,
    OpenAISection,
    Section,
    ServerSection,
    StoreSection,
    TokensSection,
)
from chatsvc.settings.sources import PREFIX, read_environment, read_toml, sentence

# Threads of the web process. Each kind of waiting has a maximum, and the sum of all is the number of threads, so that
# waiting requests can never take every thread.
WAITING_HASHES = 64  # logins that wait for a hash; more are refused at once
_DIRECTORY_LOGINS = 40  # that ask a directory or wait to (guard/accounts/login.py)
_OTHER_THREADS = 24  # all other requests, which wait for the disk, a database or a provider
HEALTH_THREADS = 8  # reserved for health
_MAX_KEEP_ALIVE_S = 60  # nginx gives a silent upstream 75 s
# No library may use the network: models are local files, and there is no telemetry.
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "MALLOC_ARENA_MAX": "2",  # glibc: fewer heap arenas hold back less memory
}


class Settings(BaseSettings):
    """The whole configuration, made by :func:`load`. Pass on only the values that a package needs, not all of it."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    home: Path = Path("var")
    server: ServerSection = ServerSection()
    guard: GuardSection = GuardSection()
    tokens: TokensSection = TokensSection()
    accounts: AccountsSection = AccountsSection()
    limits: LimitsSection = LimitsSection()
    chat: ChatSection = ChatSection()
    openai: OpenAISection = OpenAISection()
    engine: EngineSection = EngineSection()
    models: ModelsSection = ModelsSection()
    audit: AuditSection = AuditSection()
    store: StoreSection = StoreSection()
    ldap: LdapSection = LdapSection()
    oidc: OidcSection = OidcSection()
    logs: LogsSection = LogsSection()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """Refuse values that are valid one by one but not together."""
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
                not self.server.threads or self.server.threads >= self.least_threads,
                f"server.threads must be 0 or at least {self.least_threads}: as many requests may wait at once",
            ),
            (
                self.server.keep_alive_s <= _MAX_KEEP_ALIVE_S,
                f"server.keep_alive_s must be at most {_MAX_KEEP_ALIVE_S}, or nginx ends silent streams",
            ),
        )
        if broken := [*(message for holds, message in rules if not holds), *self._unknown_roles()]:
            raise ValueError("\n".join(broken))
        return self

    def _unknown_roles(self) -> list[str]:
        """Unknown role names: they would silently give no scopes."""
        named = (
            ("limits.by_role", self.limits.by_role.keys()),
            ("ldap.roles", self.ldap.roles.values()),
            ("oidc.roles", self.oidc.roles.values()),
        )
        known = ", ".join(sorted(self.accounts.roles))
        return [
            f"{key}: there is no role {role!r}; accounts.roles has {known}"
            for key, roles in named
            for role in sorted(set(roles) - self.accounts.roles.keys())
        ]

    @property
    def server_threads(self) -> int:
        """Threads of the web process."""
        return self.server.threads or self.least_threads

    @property
    def least_threads(self) -> int:
        """One for each request that may run or wait at once, of every kind, and those reserved for health."""
        answers = self.engine.max_num_seqs + self.limits.max_waiting
        logins = self.accounts.max_parallel_hashes + WAITING_HASHES
        directory = _DIRECTORY_LOGINS if self.ldap.url else 0
        return answers + logins + directory + _OTHER_THREADS + HEALTH_THREADS

    # Paths that the file does not set are below CHATSVC_HOME.
    @property
    def engine_socket(self) -> Path:
        """The unix socket between web and engine, mode 0600."""
        return self.engine.socket or self.home / "run" / "engine.sock"

    @property
    def models_directory(self) -> Path:
        """One folder for each model, and ``current``, a symbolic link to the active one."""
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
        if self.store.url is not None:
            return self.store.url.get_secret_value()
        return f"sqlite:///{quote(str(self.home / 'chatsvc.db'))}"  # in a URL, ? and % of a path need quoting


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the configuration.

    The file is ``$CHATSVC_CONFIG``, else ``$CHATSVC_HOME/chatsvc.toml`` if it exists, else none.

    Raises:
        ConfigurationInvalid: with every problem, not only the first.
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
    """The environment of a child process: this process's, with libraries kept offline, and the additions."""
    return {**os.environ, **_OFFLINE, **additions}


def environment_value(name: str) -> str | None:
    """A variable that is no key of the configuration, such as ``PORT``; None if unset or empty."""
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
