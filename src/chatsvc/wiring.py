"""Turns settings into the options of other packages, for the web process and the command line.

Knows the fields of both, and nothing about what the values do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from chatsvc.audit.facts import Facts, Result
from chatsvc.audit.log import AuditLog
from chatsvc.audit.options import AuditOptions, Peer
from chatsvc.errors import OperatorError
from chatsvc.guard.accounts.external import Directory, ExternalAccounts, TrustedIssuer
from chatsvc.guard.accounts.passwords import PasswordOptions
from chatsvc.guard.assembly import GuardOptions
from chatsvc.guard.credentials.tokens import TokenOptions
from chatsvc.guard.gate import GateOptions
from chatsvc.guard.outbox import Recorder
from chatsvc.guard.principal import Limits
from chatsvc.settings.load import WAITING_HASHES, Settings

if TYPE_CHECKING:
    from chatsvc.guard.providers.oidc import OidcProvider
    from chatsvc.models.store import ModelFolder, ModelStore, Trial


def _require_extra(key: str, package: str, extra: str) -> None:
    """Require the optional package of a configuration key, before an import fails.

    Raises:
        OperatorError: it is not installed; the message says how to install it.
    """
    if find_spec(package) is None:
        raise OperatorError(
            f"{key} is set, but the package {package} is not installed: run pip install 'chatsvc[{extra}]' (in a "
            f"checkout: pip install -c constraints.txt -e '.[{extra}]'), or remove {key}."
        )


def _require_store_extras(settings: Settings) -> None:
    if not settings.store_url.startswith("sqlite"):
        _require_extra("store.url", "psycopg", "postgres")
    if settings.store.redis_url is not None:
        _require_extra("store.redis_url", "redis", "redis")


def audit_options(settings: Settings) -> AuditOptions:
    """The audit log's options.

    Raises:
        OperatorError: a package that the configuration needs is not installed.
    """
    audit = settings.audit
    if audit.witness_url is not None:
        _require_extra("audit.witness_url", "psycopg", "postgres")
    return AuditOptions(
        directory=settings.audit_directory,
        keys=settings.keys_directory,
        origin=audit.origin,
        checkpoint_records=audit.checkpoint_records,
        checkpoint_interval_s=audit.checkpoint_interval_s,
        segment_bytes=audit.segment_bytes,
        segment_age_s=audit.segment_age_s,
        epoch_s=audit.epoch_s,
        level=audit.level,
        auditor_key=audit.auditor_key_file,
        second_directory=audit.second_directory,
        witness_files=tuple(audit.witness_files),
        witness_syslog=str(audit.witness_syslog) if audit.witness_syslog else None,
        witness_url=audit.witness_url.get_secret_value() if audit.witness_url else None,
        witness_peer=_witness_peer(settings),
        space_alarm=audit.space_alarm,
        about={"version": version("chatsvc"), "configuration": _digest(settings)},
    )


def _witness_peer(settings: Settings) -> Peer | None:
    audit = settings.audit
    if audit.witness_peer_url is None:
        return None
    key = audit.witness_peer_key.get_secret_value() if audit.witness_peer_key else ""
    return Peer(audit.witness_peer_url, key, audit.witness_peer_ca_file)


def _digest(settings: Settings) -> str:
    """SHA-256 of the configuration without its secrets: the audit log shows at which start it had changed."""
    return hashlib.sha256(settings.model_dump_json().encode()).hexdigest()


def guard_options(settings: Settings) -> GuardOptions:
    """The guard's options.

    Raises:
        OperatorError: a package that the configuration needs is not installed.
    """
    _require_store_extras(settings)
    tokens, accounts, limits = settings.tokens, settings.accounts, settings.limits
    redis_url = settings.store.redis_url
    return GuardOptions(
        store_url=settings.store_url,
        keys_directory=settings.keys_directory,
        gate=GateOptions(
            limits=Limits(limits.requests_per_minute, limits.tokens_per_day, limits.max_concurrent_per_principal),
            allowed_networks=tuple(settings.guard.allowed_networks),
            trusted_proxies=tuple(settings.guard.trusted_proxies),
            role_limits={role: own.model_dump(exclude_none=True) for role, own in limits.by_role.items()},
        ),
        algorithm=tokens.algorithm,
        tokens=TokenOptions(
            issuer=tokens.issuer,
            audience=tokens.audience,
            access_lifetime_s=tokens.access_lifetime_s,
            refresh_idle_s=tokens.refresh_idle_s,
            leeway_s=tokens.leeway_s,
        ),
        refresh_absolute_s=tokens.refresh_absolute_s,
        passwords=PasswordOptions(
            memory_kib=accounts.argon2_memory_kib,
            time_cost=accounts.argon2_time_cost,
            parallelism=accounts.argon2_parallelism,
            max_parallel=accounts.max_parallel_hashes,
            max_waiting=WAITING_HASHES,
        ),
        roles=accounts.roles,
        redis_url=redis_url.get_secret_value() if redis_url else None,
    )


def ldap_directory(settings: Settings) -> Callable[[ExternalAccounts], Directory] | None:
    """A factory of the LDAP directory, which needs the accounts; None if no directory is configured.

    Raises:
        OperatorError: the package for it is not installed.
    """
    section = settings.ldap
    if section.url is None:
        return None
    _require_extra("ldap.url", "ldap3", "directory")
    # The extra "directory" need not be installed where no directory is configured.
    from chatsvc.guard.providers.ldap import LdapDirectory, LdapOptions  # noqa: PLC0415

    options = LdapOptions(
        url=section.url,
        user_base=section.user_base,
        user_filter=section.user_filter,
        group_base=section.group_base,
        group_filter=section.group_filter,
        bind_dn=section.bind_dn,
        bind_password=section.bind_password.get_secret_value() if section.bind_password else "",
        start_tls=section.start_tls,
        ca_file=section.ca_file,
        roles=section.roles,
    )
    return lambda accounts: LdapDirectory(options, accounts)


def oidc_provider(settings: Settings) -> OidcProvider | None:
    """The OpenID provider, or None if none is configured.

    Raises:
        OperatorError: a package for it is not installed, or the section is incomplete.
    """
    section = settings.oidc
    if section.issuer is None:
        return None
    for package in ("authlib", "joserfc", "requests"):
        _require_extra("oidc.issuer", package, "directory")
    from chatsvc.guard.providers.oidc import OidcOptions, OidcProvider  # noqa: PLC0415  (as above)

    return OidcProvider(
        OidcOptions(
            issuer=section.issuer,
            client_id=section.client_id,
            client_secret=section.client_secret.get_secret_value() if section.client_secret else "",
            redirect_url=section.redirect_url,
            scopes=section.scopes,
            name_claim=section.name_claim,
            groups_claim=section.groups_claim,
            roles=section.roles,
            api_audience=section.api_audience,
            ca_file=section.ca_file,
        )
    )


def oidc_bearer(provider: OidcProvider | None, accounts: ExternalAccounts) -> TrustedIssuer | None:
    """Accepts the provider's tokens as bearers; None if there is no provider."""
    if provider is None:
        return None
    from chatsvc.guard.providers.oidc import OidcBearer  # noqa: PLC0415  (as above)

    return OidcBearer(provider, accounts)


def outbox_recorder(audit: AuditLog) -> Recorder:
    """Writes the outbox's administrative acts, done by command, into the audit log."""

    def record(action: str, actor: str, details: Mapping[str, Any]) -> None:
        audit.event(Facts(request_id=uuid4().hex, action=action, actor=actor), Result("allowed", details=details))

    return record


def model_store(settings: Settings, trial: Trial | None = None) -> ModelStore:
    """The model store of a configuration. With ``trial``, only models that pass it are taken in."""
    from chatsvc.models.store import ModelStore  # noqa: PLC0415 - most commands never open a model

    return ModelStore(settings.models_directory, settings.keys_directory, settings.models.kek_file, trial)


def examine_model(settings: Settings, folder: ModelFolder) -> None:
    """Check that a model's template renders and a runner accepts its weights, without loading them.

    Raises:
        OperatorError: it would not be served; the message says why.
    """
    from chatsvc.chat import smoke_test  # noqa: PLC0415 - the template's machinery, only where a model is looked at
    from chatsvc.models.supply.importing import GGUF_WEIGHTS  # noqa: PLC0415 - as the next line

    description = folder.description()
    weights = folder.path / GGUF_WEIGHTS if description.format == "gguf" else folder.path
    opened = None if description.sealed else weights
    smoke_test.check_without_loading(
        folder.card(), opened, description.format, settings.engine.runner, settings.chat.system_prompt
    )
