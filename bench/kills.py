"""``python -m bench.kills``: kill -9 of the web process, a hundred times, while clients are being answered.

The real gunicorn and a real engine with the embedded model; every second time the worker alone is killed, else its
master too. Afterwards every record that a client had to rely on must be in the log, once, and nothing may be open: an
answer (its begin and its end), a stream's first piece (its begin). About five minutes; ends with 1 when something is
missing, and prints what.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench import cpu, page, program
from bench.load import Target, asking
from bench.processes import end_on_sigterm, free_port, running, wait_for
from chatsvc.models.store import ModelStore
from chatsvc.models.supply import embedded

_CHATSVC = [sys.executable, "-m", "chatsvc.cli.main"]
_GUNICORN = [sys.executable, "-m", "gunicorn", "-c", "config/gunicorn.conf.py"]
_RETURN_S = 60


@dataclass
class Told:
    """What clients were told, by request id; sets are only added to."""

    begun: set[str] = field(default_factory=set)
    answered: set[str] = field(default_factory=set)


class Home:
    """A CHATSVC_HOME with the embedded model, an account and a key."""

    def __init__(self, path: Path) -> None:
        self.path, self.port = path, free_port()
        settings = {
            "GUARD__ALLOWED_NETWORKS": '["127.0.0.0/8"]',
            "SERVER__PORT": str(self.port),
            "LIMITS__REQUESTS_PER_MINUTE": "1000000",
            "MODELS__OFFLINE": "true",
            "AUDIT__CHECKPOINT_RECORDS": "32",
        }
        self.environment = {"CHATSVC_HOME": str(path)} | {f"CHATSVC_{key}": each for key, each in settings.items()}
        path.mkdir(mode=0o700, exist_ok=True)
        embedded.ensure(ModelStore(path / "models", path / "keys"))
        self.run("user", "add", "bench", "--role", "user", "--password-stdin", given="the bench's long password\n")
        self.key = self.run("key", "create", "--name", "bench", "--scope", "chat", "--account", "bench").strip()
        self.target = Target("web", "127.0.0.1", self.port)

    def run(self, *arguments: str, given: str = "") -> str:
        """One of our commands; it must succeed."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(
            [*_CHATSVC, *arguments], env=environment, input=given, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"chatsvc {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def records(self) -> list[dict[str, object]]:
        """All of the log, as the command shows it."""
        return [json.loads(line) for line in self.run("audit", "show", "--json", "-n", "0").splitlines()]


class Clients:
    """What each of many threads does again and again, whole answers and streams in turn; ``told`` notes what came."""

    def __init__(self, home: Home) -> None:
        self.told = Told()
        self._home = home
        self._numbers = itertools.count()

    def ask(self) -> None:
        """One request."""
        number = next(self._numbers)
        with contextlib.suppress(OSError, http.client.HTTPException):
            self._one(f"c{number}", streams=number % 2 == 0)
            return
        time.sleep(0.02)  # no process listens at the moment

    def _one(self, request_id: str, *, streams: bool) -> None:
        connection = self._home.target.connect(timeout_s=30)
        try:
            body = json.dumps({"query": "What is the capital of France?", "max_tokens": 3})
            headers = {
                "Authorization": f"Bearer {self._home.key}",
                "Content-Type": "application/json",
                "X-Request-Id": request_id,
            }
            connection.request("POST", "/chat/stream" if streams else "/chat", body, headers)
            with connection.getresponse() as answer:
                if answer.status != 200:
                    answer.read()
                elif not streams:
                    answer.read()
                    self.told.answered.add(request_id)
                else:
                    self._read(answer, request_id)
        finally:
            connection.close()

    def _read(self, answer: http.client.HTTPResponse, request_id: str) -> None:
        while line := answer.readline():
            if line.startswith(b"data: "):
                self.told.begun.add(request_id)


@contextlib.contextmanager
def web(home: Home, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """gunicorn until the end of the block, by SIGTERM if it still lives."""
    with running(_GUNICORN, log, home.environment) as process:
        wait_for(home.target, "/readyz", process, log)
        yield process


def kill_again_and_again(home: Home, told: Told, times: int, log: Path) -> None:
    """So many kills, each some moments after answers have come."""
    dice, left = random.Random(4711), times
    while left:
        with web(home, log) as process:
            while left:
                _wait_for_answers(told)
                time.sleep(dice.uniform(0, 0.3))
                workers = cpu.descendants(process.pid)
                left -= 1
                whole = left % 2 == 0
                for pid in [process.pid, *workers] if whole else workers:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                print(f"{times - left} of {times}: {'all' if whole else 'worker'}; answers so far {len(told.answered)}")
                if whole:
                    process.wait()
                    break


def _wait_for_answers(told: Told) -> None:
    before, until = len(told.answered) + len(told.begun), time.monotonic() + _RETURN_S
    while len(told.answered) + len(told.begun) < before + 4:
        if time.monotonic() > until:
            raise RuntimeError(f"no answer within {_RETURN_S} s after a kill")
        time.sleep(0.005)


def check(home: Home, told: Told) -> Mapping[str, object]:
    """What the log says about what clients were told; the service has ended."""
    verified = json.loads(home.run("audit", "verify", "--json"))
    chats = [each for each in home.records() if each["action"] == "chat.generate"]
    begins = Counter(each["request_id"] for each in chats if each["stage"] == "begin")
    ends = Counter(each["begin"] for each in chats if each["stage"] == "end")
    allowed = {each["request_id"] for each in chats if each["stage"] == "end" and each["outcome"] == "allowed"}
    numbers = {each["seq"] for each in chats if each["stage"] == "begin"}
    return {
        "answered": len(told.answered),
        "streams_begun": len(told.begun),
        "records": sum(int(each["num_records"]) for each in verified["logs"]),
        "closed_as_aborted": sum(each["outcome"] == "aborted" for each in chats),
        "answered_without_end": sorted(told.answered - allowed),
        "begun_without_begin": sorted((told.begun | told.answered) - begins.keys()),
        "recorded_twice": sorted(str(each) for each, count in (begins + ends).items() if count > 1),
        "begins_without_end": sorted(numbers - ends.keys()),
        "open_for_the_verifier": sum(each["num_open"] for each in verified["logs"]),
    }


MUST_BE_EMPTY = (
    "answered_without_end",
    "begun_without_begin",
    "recorded_twice",
    "begins_without_end",
    "open_for_the_verifier",
)


def run(path: Path, times: int, num_clients: int) -> Mapping[str, object]:
    """All of it, in a new home."""
    home = Home(path)
    clients = Clients(home)
    engine = [*_CHATSVC, "engine"]
    log = path.parent / "web.log"
    with running(engine, path.parent / "engine.log", home.environment):
        with asking(clients.ask, num_clients):
            kill_again_and_again(home, clients.told, times, log)
        with web(home, log):
            pass  # closes what the last kill left open, and ends in peace
    return {"kills": times, **check(home, clients.told)}


def main() -> None:
    """Run, print, keep."""
    end_on_sigterm()
    parser = program.parser(__doc__, has_cache=False)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--clients", type=int, default=4)
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        result = run(Path(place) / "home", arguments.times, arguments.clients)
    print(json.dumps(result, indent=1))
    missing = [name for name in MUST_BE_EMPTY if result[name]]
    if not arguments.not_kept:
        page.save("kills", result, table(result, time.monotonic() - started))
    sys.exit(f"not as it must be: {', '.join(missing)}" if missing else 0)


def table(result: Mapping[str, object], seconds: float) -> str:
    """Markdown."""
    lost = sum(len(found) if isinstance(found := result[name], list) else int(str(found)) for name in MUST_BE_EMPTY)
    names = ("kills", "answered", "streams_begun", "records", "closed_as_aborted")
    head = "| kill -9 | whole answers | streams begun | records | closed as aborted | lost, doubled or open | s |"
    return (
        f"{head}\n|{'---:|' * 7}\n| " + " | ".join(str(result[name]) for name in names) + f" | {lost} | {seconds:.0f} |"
    )


if __name__ == "__main__":
    main()
