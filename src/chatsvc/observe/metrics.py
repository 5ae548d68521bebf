"""Prometheus metrics under ``chatsvc_``, named after vLLM's and OpenTelemetry's GenAI conventions.

Each :class:`Metrics` has a registry of its own; nothing is global. Knows nothing about HTTP or who scrapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_PER_TOKEN_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)


class Metrics:
    """All metrics; thread-safe."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self._requests = Counter(
            "chatsvc_http_requests", "Requests answered.", ["route", "method", "status"], registry=self.registry
        )
        self._request_s = Histogram(
            "chatsvc_http_request_duration_seconds",
            "From the request's headers to the last byte of its answer.",
            ["route"],
            buckets=_LATENCY_S,
            registry=self.registry,
        )
        self._prompt_tokens = Counter("chatsvc_prompt_tokens", "Prompt tokens of generations.", registry=self.registry)
        self._cached_tokens = Counter(
            "chatsvc_prompt_tokens_cached", "Prompt tokens found in the prefix cache.", registry=self.registry
        )
        self._generation_tokens = Counter(
            "chatsvc_generation_tokens", "Completion tokens of generations.", registry=self.registry
        )
        self._generations = Counter(
            "chatsvc_request_success", "Generations by how they ended.", ["finished_reason"], registry=self.registry
        )
        self._first_token_s = Histogram(
            "chatsvc_time_to_first_token_seconds",
            "From admission to the first token.",
            buckets=_LATENCY_S,
            registry=self.registry,
        )
        self._per_token_s = Histogram(
            "chatsvc_time_per_output_token_seconds",
            "Mean time between two tokens of one generation.",
            buckets=_PER_TOKEN_S,
            registry=self.registry,
        )
        self._generation_s = Histogram(
            "chatsvc_e2e_request_latency_seconds",
            "From admission to the last token.",
            buckets=_LATENCY_S,
            registry=self.registry,
        )

    def observe_request(self, route: str, method: str, status: int, duration_s: float) -> None:
        """Count an answered request; ``duration_s`` runs until the last byte of the answer."""
        self._requests.labels(route, method, str(status)).inc()
        self._request_s.labels(route).observe(duration_s)

    def observe_generation(
        self, reason: str, num_prompt_tokens: int, num_completion_tokens: int, num_cached_tokens: int
    ) -> None:
        """Count a generation that has ended; ``reason`` is its finish reason."""
        self._generations.labels(reason).inc()
        self._prompt_tokens.inc(num_prompt_tokens)
        self._generation_tokens.inc(num_completion_tokens)
        self._cached_tokens.inc(num_cached_tokens)

    def observe_latency(self, first_token_s: float, total_s: float, num_tokens: int) -> None:
        """Record the times of a generation that produced tokens; both run from its admission."""
        self._first_token_s.observe(first_token_s)
        self._generation_s.observe(total_s)
        if num_tokens > 1:
            self._per_token_s.observe((total_s - first_token_s) / (num_tokens - 1))

    def add_gauges(self, read: Callable[[], Mapping[str, tuple[str, float]]]) -> None:
        """Add gauges that ``read`` returns at each scrape: name -> (help, value)."""
        self.registry.register(_Gauges(read))

    def exposition(self) -> bytes:
        """The metrics in the Prometheus text format 0.0.4."""
        return generate_latest(self.registry)


class _Gauges(Collector):
    """Reads gauges at scrape time, so that nothing has to keep them up to date."""

    def __init__(self, read: Callable[[], Mapping[str, tuple[str, float]]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        """The gauges now."""
        for name, (documentation, value) in self._read().items():
            yield GaugeMetricFamily(name, documentation, value=value)
