"""``/healthz``, ``/livez``, ``/readyz`` and ``/metrics``: read from memory, no inference, nothing that blocks.

The truth is what this process knows already: the engine's heartbeat, the state of the audit log, whether the database
and Redis answered a second ago and the database could be written, how the last chats ended, whether it drains.
Slow is not dead (heartbeats and steps go on), hung is not healthy (the engine client sees no progress and says so).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flask import Blueprint, Response

from chatsvc.audit.log import AuditLog
from chatsvc.chat.drain import Drain
from chatsvc.engine.web_side.client import EngineClient
from chatsvc.guard.limits.queue import Queue
from chatsvc.guard.principal import PUBLIC, scope
from chatsvc.http.wire.routing import requires
from chatsvc.observe.metrics import CONTENT_TYPE, Metrics
from chatsvc.observe.pulse import Pulse
from chatsvc.observe.streak import Streak

_MESSAGES = {
    "starting": "the model is being loaded",
    "died": "the model's process ended and is being restarted",
    "stalled": "the model's process makes no progress",
    "draining": "the service is shutting down or changing its model",
}


@dataclass(frozen=True, slots=True)
class Health:
    """What health is read from."""

    engine: EngineClient
    audit: AuditLog
    drain: Drain
    pulse: Pulse
    streak: Streak

    def state(self) -> tuple[str, str | None]:
        """(``ok``, None), or (``starting`` | ``draining`` | ``error``, why)."""
        if self.drain.has_begun:
            return "draining", _MESSAGES["draining"]
        problem = self.audit.problem()
        if problem is not None:
            return "error", f"the audit log cannot be written: {problem}"
        silent = self.pulse.problem()
        if silent is not None:
            return "error", silent
        code = self.streak.problem()
        if code is not None:
            return "error", f"all of the last chats failed with {code}; the log says why"
        status = self.engine.status()
        if status.ready:
            return "ok", None
        reason = status.reason or "died"
        return (reason if reason in {"starting", "draining"} else "error"), _MESSAGES.get(reason, reason)


def blueprint(health: Health, metrics: Metrics) -> Blueprint:
    """The routes."""
    routes = Blueprint("ops", __name__)

    @routes.get("/livez")
    @requires(PUBLIC)
    def livez() -> dict[str, str]:
        return {"status": "ok"}

    @routes.get("/health", endpoint="health")  # other servers' name, which their clients ask for
    @routes.get("/healthz")
    @requires(PUBLIC)
    def healthz() -> tuple[dict[str, Any], int, dict[str, str]]:
        state, reason = health.state()
        if state == "ok":
            return {"status": "ok"}, 200, {}
        return {"status": "error", "reason": reason}, 503, {"Retry-After": "5"}

    @routes.get("/readyz")
    @requires(PUBLIC)
    def readyz() -> tuple[dict[str, Any], int, dict[str, str]]:
        state, reason = health.state()
        if state == "ok":
            return {"status": "ok"}, 200, {}
        return {"status": state, "reason": reason}, 503, {"Retry-After": "5"}

    @routes.get("/metrics")
    @requires(scope("metrics"), open_to_scrapers=True)
    def exposition() -> Response:
        return Response(metrics.exposition(), content_type=CONTENT_TYPE)

    return routes


def gauges(health: Health, queue: Queue) -> Callable[[], dict[str, tuple[str, float]]]:
    """What ``/metrics`` reads at scrape time."""

    def read() -> dict[str, tuple[str, float]]:
        engine = health.engine.status()
        return {
            "chatsvc_sequences_running": ("Sequences in the engine's batch.", engine.num_running),
            "chatsvc_sequences_waiting": ("Requests waiting for a slot.", engine.num_waiting + queue.num_waiting),
            "chatsvc_sequences_max": ("Slots of the engine.", engine.max_num_seqs),
            "chatsvc_kv_cache_usage_perc": ("Share of the KV cache in use, 0 to 1.", engine.cache_usage),
            "chatsvc_engine_steps": ("Steps of the engine since it started.", engine.num_steps),
            "chatsvc_engine_ready": ("1 while the engine takes work.", float(engine.ready)),
            "chatsvc_audit_writable": ("1 while the audit log can be written.", float(health.audit.problem() is None)),
            "chatsvc_store_reachable": ("1 while database and Redis answer.", float(health.pulse.problem() is None)),
            "chatsvc_audit_alarms": (
                "What needs somebody: disks, devices, witnesses, the clock, floods of failed logins.",
                len(health.audit.alarms()),
            ),
            "chatsvc_draining": ("1 while the service goes down.", float(health.drain.has_begun)),
        }

    return read
