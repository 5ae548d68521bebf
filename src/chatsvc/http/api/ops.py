"""``/healthz``, ``/livez``, ``/readyz`` and ``/metrics``: read from memory; no inference, nothing that blocks.

Health is derived from what this process already knows: the engine's heartbeat, the state of the audit log, whether the
database and Redis answered a second ago and the database could be written, how the last chats ended, whether it is
draining. A slow engine is healthy (its heartbeats and steps continue); a hung one is not (the engine client sees no
progress).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypedDict

from flask import Response

from chatsvc.audit.log import AuditLog
from chatsvc.chat.drain import Drain
from chatsvc.engine.web_side.client import EngineClient
from chatsvc.guard.limits.queue import Queue
from chatsvc.guard.principal import PUBLIC, scope
from chatsvc.http.wire.routing import Operation, like, requires, route
from chatsvc.observe.metrics import CONTENT_TYPE, Metrics
from chatsvc.observe.pulse import Pulse
from chatsvc.observe.streak import Streak

_MESSAGES = {
    "starting": "the model is being loaded",
    "died": "the model's process ended and is being restarted",
    "stalled": "the model's process makes no progress",
    "draining": "the service is shutting down or changing its model",
}


State = Literal["ok", "starting", "draining", "error"]


@dataclass(frozen=True, slots=True)
class Health:
    """Everything that health depends on."""

    engine: EngineClient
    audit: AuditLog
    drain: Drain
    pulse: Pulse
    streak: Streak

    def state(self) -> tuple[State, str]:
        """The state, and the reason if it is not ``ok``."""
        if self.drain.has_begun:
            return "draining", _MESSAGES["draining"]
        if (problem := self._problem()) is not None:
            return "error", problem
        status = self.engine.status()
        if status.ready:
            return "ok", ""
        reason = status.reason or "died"
        passing: dict[str, State] = {"starting": "starting", "draining": "draining"}
        return passing.get(reason, "error"), _MESSAGES.get(reason, reason)

    def _problem(self) -> str | None:
        if (problem := self.audit.problem()) is not None:
            return f"the audit log cannot be written: {problem}"
        if (problem := self.pulse.problem()) is not None:
            return problem
        if (code := self.streak.problem()) is not None:
            return f"all of the last chats failed with {code}; the log says why"
        return None


class Healthy(TypedDict):
    """All is well."""

    status: Literal["ok"]


class NotHealthy(TypedDict):
    """``reason`` says why, for a person."""

    status: Annotated[Literal["starting", "draining", "error"], like("starting")]
    reason: Annotated[str, like("the model is being loaded")]


HealthAnswer = tuple[Healthy | NotHealthy, int, dict[str, str]]
_METRICS = """\
# HELP chatsvc_sequences_running Sequences in the engine's batch.
# TYPE chatsvc_sequences_running gauge
chatsvc_sequences_running 3.0
"""


@dataclass(frozen=True, slots=True)
class OpsViews:
    """The views, and what they need."""

    TAG: ClassVar = "health"

    health: Health
    metrics: Metrics

    @route("GET", "/livez")
    @requires(PUBLIC)
    @Operation(answer=Healthy)
    def livez(self) -> Healthy:
        """Does the process answer at all?"""
        return {"status": "ok"}

    @route("GET", "/health", endpoint="health")  # other servers' name, which their clients ask for
    @route("GET", "/healthz")
    @requires(PUBLIC)
    @Operation(answer=Healthy, failures={503: NotHealthy})
    def healthz(self) -> HealthAnswer:
        """Can the whole service answer? `/health` is another name for it."""
        state, reason = self.health.state()
        return _answer("ok" if state == "ok" else "error", reason)

    @route("GET", "/readyz")
    @requires(PUBLIC)
    @Operation(answer=Healthy, failures={503: NotHealthy})
    def readyz(self) -> HealthAnswer:
        """Should it be sent requests?"""
        return _answer(*self.health.state())

    @route("GET", "/metrics")
    @requires(scope("metrics"), open_to_scrapers=True)
    @Operation(texts={"text/plain": _METRICS})
    def exposition(self) -> Response:
        """Metrics in Prometheus' text format.

        An address on one of the configured scraper networks needs no token.
        """
        return Response(self.metrics.exposition(), content_type=CONTENT_TYPE)


def _answer(state: State, reason: str) -> HealthAnswer:
    if state == "ok":
        return {"status": "ok"}, 200, {}
    return {"status": state, "reason": reason}, 503, {"Retry-After": "5"}


def gauges(health: Health, queue: Queue) -> Callable[[], dict[str, tuple[str, float]]]:
    """The gauges that ``/metrics`` reads at scrape time."""

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
                "Active alarms: disks, devices, witnesses, the clock, floods of failed logins.",
                len(health.audit.alarms()),
            ),
            "chatsvc_draining": ("1 while the service is shutting down.", float(health.drain.has_begun)),
        }

    return read
