"""``python -m bench.logins``: what many logins at once cost others, and whether timing reveals accounts.

1. Fifty people log in at once, while another process asks ``/healthz`` and the web process's memory is sampled.
2. Wrong passwords of accounts that are there, and of accounts that are not, in turn: their answers and their times.

Through nginx with TLS, the real gunicorn and the embedded model; every client has an address of its own, as people
have. In the second part no name fails more than five times from one address nor a hundred times at all, so that the
throttle has nothing to do: it treats both kinds alike, but it would hide what the rest takes.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import multiprocessing
import os
import random
import secrets
import socket
import ssl
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from bench import cpu, page, program
from bench.load import Target
from bench.processes import end_on_sigterm
from bench.stack import StackOptions, stack
from bench.supply import Supply
from chatsvc.errors import Conflict
from chatsvc.guard.assembly import assemble
from chatsvc.settings.load import load
from chatsvc.wiring import guard_options

_NUM_LOGINS = 50
_NUM_NAMES = 10
_PROBE_INTERVAL_S = 0.005
_PASSWORD = secrets.token_urlsafe(24)
_MAX_HEALTH_MS, _MAX_MIB, _MAX_DIFFERENCE = 50, 150, 0.05


@dataclass(frozen=True, slots=True)
class Answer:
    """What one login got: the status, the body, the seconds from the request's first byte to the answer's last."""

    status: int
    body: bytes
    seconds: float


class Visitor:
    """One client with an address of its own, connected before anything is timed."""

    def __init__(self, target: Target, address: str) -> None:
        self._connection = http.client.HTTPConnection(target.host, target.port, timeout=60)
        plain = socket.create_connection((target.host, target.port), timeout=60, source_address=(address, 0))
        assert target.tls is not None, "the stack has TLS"
        self._connection.sock = target.tls.wrap_socket(plain, server_hostname=target.host)

    def log_in(self, name: str, password: str) -> Answer:
        """One try."""
        body = json.dumps({"username": name, "password": password})
        started = time.perf_counter()
        self._connection.request("POST", "/login", body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        content = response.read()
        return Answer(response.status, content, time.perf_counter() - started)

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


def watch(port: int, certificate: str, web: int, stop: Event, found: multiprocessing.Queue[dict[str, Any]]) -> None:
    """In a process of its own: how long ``/healthz`` takes, and the most anonymous memory of the web process."""
    tls = ssl.create_default_context(cafile=certificate)
    connection = http.client.HTTPSConnection("localhost", port, context=tls, timeout=30)
    connection.connect()
    times: list[float] = []
    most = least = _anonymous_mib(web)
    while not stop.is_set():
        started = time.perf_counter()
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        response.read()
        times.append((time.perf_counter() - started) * 1000 if response.status == 200 else float("inf"))
        most = max(most, _anonymous_mib(web))
        time.sleep(_PROBE_INTERVAL_S)
    found.put({"times_ms": sorted(times), "rise_mib": most - least})


def _anonymous_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("RssAnon:")) / 1024


def rush(target: Target, addresses: Iterator[str], name: str) -> list[Answer]:
    """Fifty at once."""
    visitors = [Visitor(target, next(addresses)) for _ in range(_NUM_LOGINS)]
    gate = threading.Barrier(_NUM_LOGINS)
    answers: list[Answer] = []

    def come(visitor: Visitor) -> None:
        gate.wait()
        answers.append(visitor.log_in(name, _PASSWORD))

    threads = [threading.Thread(target=come, args=(visitor,)) for visitor in visitors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for visitor in visitors:
        visitor.close()
    return answers


@contextlib.contextmanager
def watched(target: Target, certificate: Path, found: list[dict[str, Any]]) -> Iterator[None]:
    """Watch while the block runs; what was seen goes to ``found``."""
    context = multiprocessing.get_context("spawn")
    stop, queue = context.Event(), context.Queue()
    given = (target.port, str(certificate), _web_process(), stop, queue)
    watcher = context.Process(target=watch, args=given)
    watcher.start()
    time.sleep(1)
    try:
        yield
    finally:
        stop.set()
        found.append(queue.get(timeout=60))
        watcher.join()


def compared(target: Target, addresses: Iterator[str], num_tries: int) -> dict[str, Any]:
    """Wrong passwords of accounts that are there and of accounts that are not, in turn."""
    answers: dict[str, list[Answer]] = {"known": [], "nobody": []}
    for number in range(num_tries):
        # Ten names from one address, then the next address: no (name, address) comes twice.
        if number % _NUM_NAMES == 0:
            address = next(addresses)
        for kind in random.sample(list(answers), 2):
            visitor = Visitor(target, address)
            answers[kind].append(visitor.log_in(f"{kind}{number % _NUM_NAMES}", "a wrong password, surely"))
            visitor.close()
    medians = {kind: statistics.median(one.seconds for one in tried) * 1000 for kind, tried in answers.items()}
    said = {(one.status, one.body) for tried in answers.values() for one in tried}
    return {
        "num_tries_each": num_tries,
        "known_median_ms": medians["known"],
        "nobody_median_ms": medians["nobody"],
        "difference": abs(medians["known"] - medians["nobody"]) / medians["known"],
        "answers": sorted(f"{status} {body.decode()}" for status, body in said),
    }


def crowded(target: Target, certificate: Path, addresses: Iterator[str], num_rounds: int) -> dict[str, Any]:
    """Rounds of fifty; ``/healthz`` without any of them first."""
    quiet: list[dict[str, Any]] = []
    with watched(target, certificate, quiet):
        time.sleep(5)
    found: list[dict[str, Any]] = []
    statuses: Counter[int] = Counter()
    took: list[float] = []
    for _ in range(num_rounds):
        with watched(target, certificate, found):
            answers = rush(target, addresses, "known0")
        statuses.update(one.status for one in answers)
        took.append(max(one.seconds for one in answers))
    times = sorted(one for each in found for one in each["times_ms"])
    return {
        "num_logins_at_once": _NUM_LOGINS,
        "num_rounds": num_rounds,
        "statuses": statuses,
        "last_login_after_s": max(took),
        "healthz_quiet_p99_ms": _percentile(quiet[0]["times_ms"], 0.99),
        "num_healthz": len(times),
        "healthz_median_ms": _percentile(times, 0.5),
        "healthz_p99_ms": _percentile(times, 0.99),
        "healthz_worst_ms": times[-1],
        "memory_rise_mib": max(each["rise_mib"] for each in found),
    }


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def _web_process() -> int:
    """gunicorn's worker: of the two processes of that name the one with the application in it."""
    return max((pid for pid in cpu.descendants(os.getpid()) if cpu.role_of(pid) == "web"), key=_anonymous_mib)


def _add_accounts(home: Path) -> None:
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    guard = assemble(guard_options(load({"CHATSVC_HOME": str(home)})))
    for number in range(_NUM_NAMES):
        with contextlib.suppress(Conflict):
            guard.accounts.add(f"known{number}", _PASSWORD, ["user"])
        guard.accounts.set_password(f"known{number}", _PASSWORD)
        guard.throttle.forget(f"known{number}")
        guard.throttle.forget(f"nobody{number}")
    guard.close()


def _table(rushed: Mapping[str, Any], tried: Mapping[str, Any]) -> str:
    tries = f"{tried['num_tries_each']} tries each"
    worst = rushed["healthz_worst_ms"]
    health = f"{rushed['healthz_p99_ms']:.1f} ms (median {rushed['healthz_median_ms']:.1f}, worst {worst:.1f})"
    medians = f"{tried['known_median_ms']:.1f} and {tried['nobody_median_ms']:.1f} ms: {tried['difference']:.1%}"
    rows = [
        ("`/healthz` while nobody logs in, 99th percentile", f"{rushed['healthz_quiet_p99_ms']:.1f} ms", ""),
        ("`/healthz` while fifty log in, 99th percentile", health, f"at most {_MAX_HEALTH_MS} ms"),
        ("the web process's memory rises by", f"{rushed['memory_rise_mib']:.0f} MiB", f"at most {_MAX_MIB} MiB"),
        ("the last of fifty is in after", f"{rushed['last_login_after_s']:.1f} s", ""),
        (f"wrong password, unknown account: medians, {tries}", medians, f"within {_MAX_DIFFERENCE:.0%}"),
        ("different answers to them", str(len(tried["answers"])), "1"),
    ]
    return "\n".join(["| what | measured | goal |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)])


def main() -> None:
    """Run, write, and end with exit code 1 where a goal is missed."""
    end_on_sigterm()
    parser = program.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tries", type=int, default=300)
    arguments = parser.parse_args()
    home = arguments.cache / "home-logins"
    _add_accounts(home)
    model, _ = Supply(arguments.cache).embedded()
    addresses = (f"127.1.{number // 250}.{1 + number % 250}" for number in itertools.count())
    with stack(StackOptions(home, model.path / "model.gguf", model.name)) as target:
        rush(target, addresses, "known0")  # so that every thread has been used once
        rushed = crowded(target, home / "tls" / "cert.pem", addresses, arguments.rounds)
        tried = compared(target, addresses, arguments.tries)
    table = _table(rushed, tried)
    print(table)
    if not arguments.not_kept:
        page.save("logins", {"rush": rushed, "tries": tried}, table)
    kept = rushed["healthz_p99_ms"] <= _MAX_HEALTH_MS and rushed["memory_rise_mib"] <= _MAX_MIB
    alike = tried["difference"] <= _MAX_DIFFERENCE and len(tried["answers"]) == 1
    served = set(rushed["statuses"]) == {200}
    sys.exit(0 if kept and alike and served else 1)


if __name__ == "__main__":
    main()
