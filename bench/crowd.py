"""``python -m bench.crowd``: 500 clients at once on sixteen slots, while another process watches ``/healthz``.

Every client must be served in full or get 503 with a Retry-After; it then retries after exactly that time, which shows
whether the estimate was right. No two clients ask for the same lengths of prompt and answer, so that an answer to
another's question would show in its usage. Bounded: so many clients, so many tries, so many tokens.
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import random
import ssl
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from typing import Any

from bench import page, program
from bench.load import Sample, Target, chat, stream
from bench.processes import end_on_sigterm
from bench.shape import NUM_TEMPLATE_TOKENS, text_of_tokens
from bench.stack import shaped, stack

_MAX_TRIES = 4
_PROBE_INTERVAL_S = 0.05
_SHORTEST_PROMPT = 40
_SHORTEST_ANSWER = 12


@dataclass(frozen=True, slots=True)
class Client:
    """The tries of one client, in order."""

    num_prompt: int
    num_completion: int
    tries: tuple[Sample, ...]

    @property
    def is_served(self) -> bool:
        """Whether the last try was answered in full, and with this client's own prompt."""
        last = self.tries[-1]
        lengths = (last.num_prompt, last.num_completion)
        return not last.error and lengths == (self.num_prompt, self.num_completion)

    @property
    def is_told(self) -> bool:
        """Whether every try but the served one was a 503 with a Retry-After."""
        refused = self.tries[:-1] if self.is_served else self.tries
        return all(one.status == 503 and one.retry_after_s for one in refused)


def come(target: Target, number: int, gate: threading.Barrier) -> Client:
    """One client: connect, wait for all others, ask; after a refusal, retry when told to."""
    num_prompt = _SHORTEST_PROMPT + number % 100
    max_tokens = _SHORTEST_ANSWER + number % 9
    text = text_of_tokens(num_prompt - NUM_TEMPLATE_TOKENS, number)
    body = chat([{"role": "user", "content": text}], max_tokens)
    connection = target.connect()
    gate.wait()
    tries = [stream(target, connection, body)]
    connection.close()
    while len(tries) < _MAX_TRIES and tries[-1].status == 503 and tries[-1].retry_after_s:
        time.sleep(tries[-1].retry_after_s + random.random() * 0.2)
        connection = target.connect()  # a wait may be longer than nginx keeps an idle connection
        tries.append(stream(target, connection, body))
        connection.close()
    return Client(num_prompt, max_tokens, tuple(tries))


def crowd(target: Target, num_clients: int) -> list[Client]:
    """All clients, each in a thread."""
    target.headers()  # one login for all
    clients: list[Client | None] = [None] * num_clients
    gate = threading.Barrier(num_clients)

    def run(number: int) -> None:
        clients[number] = come(target, number, gate)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(num_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [client for client in clients if client is not None]


def probe(port: int, certificate: str, stop: Event, found: multiprocessing.Queue[list[float]]) -> None:
    """In a process of its own: how long ``/healthz`` takes; a wrong answer counts as infinite."""
    tls = ssl.create_default_context(cafile=certificate)
    connection = http.client.HTTPSConnection("localhost", port, context=tls, timeout=10)
    connection.connect()
    times: list[float] = []
    while not stop.is_set():
        started = time.perf_counter()
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        response.read()
        times.append(time.perf_counter() - started if response.status == 200 else float("inf"))
        time.sleep(_PROBE_INTERVAL_S)
    found.put(times)


def report(clients: list[Client], health: list[float]) -> dict[str, Any]:
    """The sums, and whether every client was treated as promised."""
    health.sort()
    second = [client.tries[1].status for client in clients if len(client.tries) > 1]
    return {
        "num_clients": len(clients),
        "num_served_at_once": sum(len(client.tries) == 1 and client.is_served for client in clients),
        "num_served": sum(client.is_served for client in clients),
        "num_refused_first": sum(client.tries[0].status == 503 for client in clients),
        "num_served_on_second_try": second.count(200),
        "num_refused_on_second_try": second.count(503),
        "num_broken": sum(not (client.is_served or client.is_told) for client in clients),
        "errors": Counter(one.error[:120] for client in clients for one in client.tries if one.status != 503)
        - Counter({"": 10**6}),
        "refusal_median_s": statistics.median(
            [one.ended - one.started for client in clients for one in client.tries if one.status == 503] or [0]
        ),
        "retry_after_s": _range([client.tries[0].retry_after_s or 0 for client in clients if len(client.tries) > 1]),
        "last_served_after_s": max(client.tries[-1].ended for client in clients)
        - min(client.tries[0].started for client in clients),
        "healthz_median_ms": statistics.median(health) * 1000,
        "healthz_p99_ms": health[int(len(health) * 0.99)] * 1000,
        "healthz_worst_ms": health[-1] * 1000,
    }


def _table(outcome: Mapping[str, Any]) -> str:
    lines = ["| what | |", "|---|---|"]
    for name, value in outcome.items():
        shown = f"{value:.3g}" if isinstance(value, float) else json.dumps(value)
        lines.append(f"| {name.removeprefix('num_').replace('_', ' ')} | {shown} |")
    return "\n".join(lines)


def _range(values: list[float]) -> list[float]:
    return [min(values), statistics.median(values), max(values)] if values else []


def main() -> None:
    """Run and print one JSON object; exit code 1 when a client was neither served nor refused properly."""
    end_on_sigterm()
    parser = program.parser(__doc__)
    parser.add_argument("--clients", type=int, default=500)
    arguments = parser.parse_args()
    options = shaped(arguments.cache)
    context = multiprocessing.get_context("spawn")
    with stack(options) as target:
        crowd(target, 32)  # so that the queue knows its service rate, as in a service in use
        stop, found = context.Event(), context.Queue()
        watcher = context.Process(target=probe, args=(target.port, str(options.home / "tls" / "cert.pem"), stop, found))
        watcher.start()
        clients = crowd(target, arguments.clients)
        stop.set()
        health = found.get(timeout=30)
        watcher.join()
        again = crowd(target, 16)  # afterwards everything is free
    outcome = report(clients, health) | {"num_served_afterwards_of_16": sum(client.is_served for client in again)}
    print(json.dumps(outcome, indent=1))
    if not arguments.not_kept:
        page.save("crowd", outcome, _table(outcome))
    sys.exit(1 if outcome["num_broken"] or outcome["num_served_afterwards_of_16"] != 16 else 0)


if __name__ == "__main__":
    main()
