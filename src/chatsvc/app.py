"""The composition root: the one module that knows all packages. :func:`create_app` wires them and decides nothing else.

The order of construction is the order of dependence: the log that everything needs first, then the guard, the engine's
client, the chat, and the routes. Everything made here is closed by :meth:`Running.close` in the opposite order.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from flask import Flask

from chatsvc.audit.log import AuditLog
from chatsvc.audit.witness.held_heads import HeldHeads
from chatsvc.chat.conversations import Conversations
from chatsvc.chat.drain import Drain
from chatsvc.chat.planning import Planner, PlannerOptions
from chatsvc.chat.service import ChatService, ServiceOptions
from chatsvc.disk import pidfile
from chatsvc.engine.web_side.client import EngineClient
from chatsvc.guard.assembly import Guard, assemble
from chatsvc.guard.credentials.keyring import read_or_make_secret
from chatsvc.guard.gate import Gate
from chatsvc.guard.limits.queue import Queue
from chatsvc.http.api import auth, chat, conversations, ops
from chatsvc.http.api.admin.accounts import AccountViews
from chatsvc.http.api.admin.keys import KeyViews
from chatsvc.http.api.admin.models import ModelViews
from chatsvc.http.api.admin.service import ServiceViews
from chatsvc.http.api.audit import AuditViews
from chatsvc.http.api.chat_schema import Bounds
from chatsvc.http.api.openai import chat as openai
from chatsvc.http.api.openai import completions
from chatsvc.http.description import openapi
from chatsvc.http.pages.views import PageViews
from chatsvc.http.wire import hooks, problems, routing, tokens
from chatsvc.http.wire.schema import MAX_PLAIN_BYTES
from chatsvc.models.card import SamplingDefaults
from chatsvc.models.store import ModelStore
from chatsvc.models.text.template_process import TemplateProcess
from chatsvc.observe.metrics import Metrics
from chatsvc.observe.pulse import Pulse
from chatsvc.settings.load import Settings
from chatsvc.wiring import (
    audit_options,
    examine_model,
    guard_options,
    ldap_directory,
    oidc_bearer,
    oidc_provider,
    outbox_recorder,
)

if TYPE_CHECKING:
    from chatsvc.guard.providers.oidc import OidcProvider

EXTENSION = "chatsvc"


@dataclass(frozen=True, slots=True)
class Running:
    """Everything that an app holds; ``app.extensions["chatsvc"]``."""

    settings: Settings
    audit: AuditLog
    guard: Guard
    gate: Gate
    queue: Queue
    engine: EngineClient
    service: ChatService
    conversations: Conversations
    templates: TemplateProcess
    drain: Drain
    metrics: Metrics
    health: ops.Health
    provider: OidcProvider | None

    def close(self) -> None:
        """Close the engine client, the log (with its last checkpoint) and the database."""
        self.health.pulse.close()
        self.engine.close()
        self.templates.close()
        self.audit.close()
        self.guard.close()


def create_app(settings: Settings) -> Flask:
    """The web application of one process.

    Raises:
        AuditUnavailable: the audit log cannot be opened.
        StoreUnavailable: the database cannot be reached.
        RuntimeError: a route declares no requirement.
    """
    with ExitStack() as on_failure:
        running = _start(settings, on_failure)
        app = _application(running)
        on_failure.pop_all()
    return app


def _application(running: Running) -> Flask:
    settings = running.settings
    app = Flask("chatsvc", static_folder=None)
    # One byte above the limit, see http/wire/schema.py: read_body.
    app.config["MAX_CONTENT_LENGTH"] = _max_plain_bytes(settings) + 1
    app.config["PROPAGATE_EXCEPTIONS"] = False
    app.url_map.merge_slashes = False
    app.url_map.strict_slashes = False  # a trailing slash is the same route
    app.extensions[EXTENSION] = running
    tokens.install(app, running.guard.ring.algorithm)
    problems.install(app)
    hooks.install(app, _hooks(running))
    _register(app, running)
    routing.check_every_route(app)
    return app


def _max_plain_bytes(settings: Settings) -> int:
    """The largest body of every route but chat's."""
    configured = settings.server.max_body_bytes
    return MAX_PLAIN_BYTES if configured == "auto" else min(configured, MAX_PLAIN_BYTES)


def running_in(app: Flask) -> Running:
    """What :func:`create_app` put into an app."""
    found: Running = app.extensions[EXTENSION]
    return found


def _start(settings: Settings, on_failure: ExitStack) -> Running:
    log = AuditLog.open(audit_options(settings))
    on_failure.callback(log.close)
    options = guard_options(settings)
    guard = assemble(options, directory=ldap_directory(settings))
    on_failure.callback(guard.close)
    provider = oidc_provider(settings)
    queue = Queue(
        settings.engine.max_num_seqs, settings.limits.max_waiting, settings.limits.max_concurrent_per_principal
    )
    gate = guard.gate(options, queue, outbox_recorder(log), issuer=oidc_bearer(provider, guard.external_accounts))
    engine = EngineClient(settings.engine_socket, stall_timeout_s=settings.engine.stall_timeout_s)
    drain, metrics, kept = Drain(), Metrics(), Conversations(guard.database)
    templates = TemplateProcess()
    on_failure.callback(templates.close)
    planner = Planner(engine, kept, templates, _planner_options(settings))
    service = ChatService(
        engine, log, planner, kept, metrics, drain, ServiceOptions(deadline_s=settings.chat.deadline_s)
    )
    pulse = Pulse(
        {
            "the database cannot be reached": guard.database.ping,
            "the database cannot be written": guard.database.check_writable,
            "Redis cannot be reached": guard.rates.ping,
        }
    )
    on_failure.callback(pulse.close)
    health = ops.Health(engine, log, drain, pulse, service.streak)
    metrics.add_gauges(ops.gauges(health, queue))
    gate.housekeep()  # records of commands that ran while the service was down
    pulse.start()
    engine.start(planner.prepare)
    on_failure.callback(engine.close)
    return Running(
        settings, log, guard, gate, queue, engine, service, kept, templates, drain, metrics, health, provider
    )


def _planner_options(settings: Settings) -> PlannerOptions:
    chat = settings.chat
    return PlannerOptions(
        system_prompt=chat.system_prompt,
        default_max_tokens=min(chat.default_max_tokens, chat.max_tokens_cap),
        sampling=SamplingDefaults(
            temperature=chat.default_temperature,
            top_p=chat.default_top_p,
            repetition_penalty=chat.default_repetition_penalty,
        ),
    )


def _hooks(running: Running) -> hooks.Hooks:
    return hooks.Hooks(
        running.gate,
        running.audit,
        running.metrics,
        scraper_networks=tuple(running.settings.guard.scraper_networks),
        cors_origins=frozenset(running.settings.server.cors_origins),
    )


def _register(app: Flask, running: Running) -> None:
    settings, guard = running.settings, running.guard
    options = guard_options(settings).gate
    access = chat.ChatAccess(
        running.gate,
        running.service,
        Bounds(settings.chat.max_tokens_cap),
        settings.server.keep_alive_s,
        settings.server.max_body_bytes,
    )
    refuses_unknown = settings.openai.unknown_fields == "refuse"
    for name, *views in (
        ("ops", ops.OpsViews(running.health, running.metrics)),
        ("auth", auth.AuthViews(running.gate, guard.login, guard.accounts, guard.sessions, guard.ring, running.audit)),
        (
            "admin",
            AccountViews(guard, running.audit, options),
            KeyViews(guard, running.audit),
            ServiceViews(running.engine, guard.sessions, running.audit),
        ),
        ("audit", _audit_views(running)),
        ("models", _model_views(running)),
        ("chat", chat.ChatViews(access)),
        ("openai", openai.OpenAIViews(access, refuses_unknown)),
        ("completions", completions.CompletionViews(access, refuses_unknown)),
        ("conversations", conversations.ConversationViews(running.conversations)),
        ("ui", PageViews(single_sign_on=running.provider is not None)),
    ):
        app.register_blueprint(routing.blueprint(name, *views))
    _register_oidc(app, running)
    configured = openapi.Configured(settings.chat.max_tokens_cap, guard.roles.names())
    openapi.install(app, version("chatsvc"), configured)


def _register_oidc(app: Flask, running: Running) -> None:
    if running.provider is None:
        return
    # The extra "directory" need not be installed where no provider is configured.
    from chatsvc.http.api import oidc  # noqa: PLC0415

    guard = running.guard
    secret = read_or_make_secret(running.settings.keys_directory / "oidc.key")
    views = oidc.views(running.provider, guard.external_accounts, guard.sessions, running.audit, secret)
    app.register_blueprint(routing.blueprint("oidc", views))


def _audit_views(running: Running) -> AuditViews:
    settings = running.settings
    witnessed = HeldHeads(settings.home / "witnessed", settings.audit.witnessed_keys_file)
    return AuditViews(running.audit, settings.audit_directory, settings.keys_directory, witnessed)


def _model_views(running: Running) -> ModelViews:
    settings = running.settings
    return ModelViews(
        ModelStore(settings.models_directory, settings.keys_directory),
        running.engine,
        running.audit,
        examine=lambda folder: examine_model(settings, folder),
        tell_to_swap=lambda: pidfile.tell_to_swap(settings.home),
    )
