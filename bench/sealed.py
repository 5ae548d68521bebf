"""``python -m bench.sealed``: sealed weights against plain ones, paired: start, memory, speed.

The random model in Qwen1.5-0.5B-Chat's shape, in each format that is served, plain and sealed in turn, so that what
else the machine does meets both. From the engine's start to its first token; the most memory it had until then, both
what was resident and what could not be given back (its own pages, and unsealed weights, mapped or not); then 16
sequences at once. Needs root to look into the engine, which keeps others out.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from bench import page, program
from bench.disk import GOAL, judge
from bench.processes import end_on_sigterm
from bench.supply import MODEL_NAME, Supply
from chatsvc.engine.client import EngineClient
from chatsvc.engine.generation import Finished, Generation
from chatsvc.engine.protocol import Sampling
from chatsvc.models import embedded, sealing
from chatsvc.models.sealed import read_kek
from chatsvc.models.store import ModelStore

_MIB = 1024 * 1024
_LOOK_S = 0.01
_NUM_SEQUENCES = 16
_GOAL_RATIO, _GOAL_MIB = 1.5, 100


@dataclass(frozen=True, slots=True)
class Run:
    """One start of the engine."""

    kind: str
    sealed: bool
    start_s: float
    start_cpu_s: float
    resident_peak_mib: int
    own_peak_mib: int
    own_rest_mib: int
    tokens_per_s: float


class Memory:
    """Looks at a process all the while; MiB."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.own_peak = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(_LOOK_S):
            self.own_peak = max(self.own_peak, self.own())

    def own(self) -> int:
        """What cannot be given back: its own pages, and memory files, whether they are mapped just now or not."""
        files: dict[int, int] = {}  # by inode: a runner opens them again by their links
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{self._pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(descriptor.readlink()).startswith("/memfd:"):
                        state = descriptor.stat()
                        files[state.st_ino] = state.st_blocks * 512
        status = self._status()
        return (status["RssAnon"] + max(status["RssShmem"], sum(files.values()))) // _MIB

    def cpu_s(self) -> float:
        """Processor time so far, of all threads."""
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_peak(self) -> int:
        """The kernel's own mark, mapped files included."""
        return self._status()["VmHWM"] // _MIB

    def _status(self) -> Mapping[str, int]:
        found = dict.fromkeys(("RssAnon", "RssShmem", "VmHWM"), 0)
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self._pid}/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in found:
                    found[name] = int(value.split()[0]) * 1024
        return found


def run(home: Path, kind: str, *, sealed: bool, num_tokens: int) -> Run:
    """Start the engine of a home, let it answer, stop it."""
    environment = {**os.environ, "CHATSVC_HOME": str(home), "CHATSVC_MODELS__KEK_FILE": str(home.parent / "kek")}
    socket = home / "run" / "engine.sock"
    socket.unlink(missing_ok=True)
    started = time.perf_counter()
    with (home.parent / "engine.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "chatsvc.cli.main", "engine"], env=environment, stdout=log, stderr=log
        )
    client = EngineClient(socket, stall_timeout_s=120)
    try:
        with Memory(process.pid) as memory:
            _wait(lambda: socket.exists() or process.poll() is not None)
            client.start()
            _wait(lambda: client.status().ready or process.poll() is not None)
            if process.poll() is not None:
                raise RuntimeError(f"the engine ended: {(home.parent / 'engine.log').read_text()[-2000:]}")
            _finish(client.submit([5, 6, 7], Sampling(max_tokens=1, temperature=0), ""))
            start_s, start_cpu_s = time.perf_counter() - started, memory.cpu_s()
            resident, own = memory.resident_peak(), memory.own_peak
        return Run(
            kind=kind,
            sealed=sealed,
            start_s=round(start_s, 2),
            start_cpu_s=round(start_cpu_s, 2),
            resident_peak_mib=resident,
            own_peak_mib=own,
            own_rest_mib=memory.own(),
            tokens_per_s=round(_speed(client, num_tokens), 1),
        )
    finally:
        client.close()
        process.terminate()
        process.wait()


def _speed(client: EngineClient, num_tokens: int) -> float:
    sampling = Sampling(max_tokens=num_tokens, temperature=0)
    started = time.perf_counter()
    work = [client.submit(range(10 + each, 74 + each), sampling, "") for each in range(_NUM_SEQUENCES)]
    total = sum(_finish(generation) for generation in work)
    return total / (time.perf_counter() - started)


def _finish(generation: Generation) -> int:
    count = 0
    while not isinstance(piece := generation.read(1), Finished):
        count += len(piece or [])
    return count


def _wait(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 300
    while not condition():
        if time.monotonic() > until:
            raise RuntimeError("the engine did not become ready")
        time.sleep(0.01)


def homes(place: Path, source: Path | None, kind: str) -> tuple[Path, Path]:
    """Two homes with the same model: plain, and sealed. ``source`` None is the embedded model."""
    kek = place / "kek"
    if not kek.exists():
        kek.write_bytes(os.urandom(32))
        kek.chmod(0o400)
    made = []
    for sealed in (False, True):
        home = place / f"{kind}-{'sealed' if sealed else 'plain'}"
        store = ModelStore(home / "models", home / "keys", kek)
        model = store.import_path(source, MODEL_NAME) if source else embedded.ensure(store)
        store.activate(model.name)
        if sealed:
            sealing.seal(store, model.name, read_kek(kek))
        made.append(home)
    return made[0], made[1]


def main() -> None:
    """Measure every format, print, keep."""
    end_on_sigterm()
    logging.disable(logging.WARNING)  # each engine that is ended is news to the client
    parser = program.parser(__doc__)
    kinds = ("gguf", "openvino", "safetensors")
    parser.add_argument("--format", nargs="+", choices=kinds, default=list(kinds), help="fewer are not kept")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="of each of 16 sequences")
    parser.add_argument("--small", action="store_true", help="the embedded model as GGUF alone; not kept")
    arguments = parser.parse_args()
    sources = {"gguf": None} if arguments.small else _sources(Supply(arguments.cache), arguments.format)
    runs: list[Run] = []
    arguments.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.cache) as place:
        for kind, source in sources.items():
            plain, sealed = homes(Path(place), source, kind)
            for number in range(arguments.rounds + 1):  # the first one warms the page cache and does not count
                for home in (plain, sealed) if number % 2 else (sealed, plain):
                    one = run(home, kind, sealed=home == sealed, num_tokens=arguments.tokens)
                    print(one, flush=True)
                    runs += [one] if number else []
    print(table(runs))
    if len(sources) == len(kinds) and not arguments.not_kept:
        page.save("sealed", {"runs": [asdict(one) for one in runs]}, table(runs))


def _sources(supply: Supply, kinds: Sequence[str]) -> dict[str, Path]:
    make = {
        "gguf": lambda: supply.gguf("Q8_0"),
        "openvino": lambda: supply.openvino("int8"),
        "safetensors": supply.hugging_face,
    }
    return {kind: make[kind]() for kind in kinds}


def table(runs: Sequence[Run]) -> str:
    """Markdown: medians, sealed against plain."""
    head = (
        "sealed against plain",
        "start",
        "processor",
        "resident peak",
        "own memory, peak",
        "at rest",
        "tokens/s, 16",
    )
    lines = [f"| {' | '.join(head)} |"]
    lines += ["|" + "---|" * len(head)]
    for kind in dict.fromkeys(one.kind for one in runs):
        plain, sealed = ([one for one in runs if one.kind == kind and one.sealed is which] for which in (False, True))
        ratio = _median(sealed, "start_s") / _median(plain, "start_s")
        more = _median(sealed, "resident_peak_mib") - _median(plain, "resident_peak_mib")
        ratios = [math.log(one.tokens_per_s / other.tokens_per_s) for one, other in zip(sealed, plain, strict=True)]
        error = statistics.stdev(ratios) / math.sqrt(len(ratios)) if len(ratios) > 1 else math.inf
        speed = statistics.fmean(ratios)
        cells = [
            f"{_pair(sealed, plain, 'start_s')} s: {ratio:.2f}{_missed(ratio > _GOAL_RATIO)}",
            f"{_pair(sealed, plain, 'start_cpu_s')} s",
            f"{_pair(sealed, plain, 'resident_peak_mib')} MiB: {more:+.0f}{_missed(more > _GOAL_MIB)}",
            f"{_pair(sealed, plain, 'own_peak_mib')} MiB",
            f"{_pair(sealed, plain, 'own_rest_mib')} MiB",
            f"{_pair(sealed, plain, 'tokens_per_s')}: {speed:+.1%} ± {error:.1%}, {judge(-speed, error)}",
        ]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    num_pairs = len(runs) // 2 // len({one.kind for one in runs})
    goals = f"{_GOAL_RATIO} times the start, {_GOAL_MIB} MiB more, the same speed (within {GOAL:.0%})"
    how = (
        f"Medians of {num_pairs} paired starts; of the pairs' speeds the mean difference, ± its standard error: a goal "
        "within two of them cannot be told apart."
    )
    return "\n".join([*lines, "", f"Goals: at most {goals}. {how}"])


def _median(runs: Sequence[Run], name: str) -> float:
    return statistics.median(getattr(one, name) for one in runs)


def _pair(sealed: Sequence[Run], plain: Sequence[Run], name: str) -> str:
    return f"{_median(sealed, name):g} / {_median(plain, name):g}"


def _missed(is_missed: bool) -> str:
    return " (missed)" if is_missed else ""


if __name__ == "__main__":
    main()
