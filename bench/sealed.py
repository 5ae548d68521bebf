"""``python -m bench.sealed``: sealed weights against plain ones, paired: start, memory, speed.

The random model in Qwen1.5-0.5B-Chat's shape, in each format that is served. Two engines are started, one after the
other: from the start to the first token; the most memory until then, both what was resident and what could not be
given back (its own pages, and unsealed weights, mapped or not). Then bursts of 16 sequences, now to the one, now to the
other, so that what else the machine does meets both. Needs root to look into the engine, which keeps others out.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from bench import page, program
from bench.disk import GOAL, judge
from bench.processes import end_on_sigterm
from bench.supply import MODEL_NAME, Supply
from chatsvc.engine.protocol import Finished, Sampling
from chatsvc.engine.web_side.client import EngineClient
from chatsvc.engine.web_side.generation import Generation
from chatsvc.models.seal import sealing
from chatsvc.models.seal.sealed import read_kek
from chatsvc.models.store import ModelStore
from chatsvc.models.supply import embedded

_MIB = 1024 * 1024
_LOOK_S = 0.01
_REST_S = 0.5
_NUM_SEQUENCES = 16
_GOAL_RATIO, _GOAL_MIB = 1.5, 100


@dataclass(frozen=True, slots=True)
class Start:
    """What one start of the engine took, until its first token."""

    start_s: float
    start_cpu_s: float
    resident_peak_mib: int
    own_peak_mib: int
    own_rest_mib: int


@dataclass(frozen=True, slots=True)
class Pair:
    """Two engines that were up together, one with plain weights, one with sealed; tokens/s of each burst."""

    kind: str
    plain: Start
    sealed: Start
    plain_speeds: list[float]
    sealed_speeds: list[float]

    def faster(self) -> float:
        """How much faster sealed is, as a logarithm of the ratio."""
        ratios = [one / other for one, other in zip(self.sealed_speeds, self.plain_speeds, strict=True)]
        return statistics.fmean(map(math.log, ratios))


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

    def own_at_rest(self) -> int:
        """The same, once it stands still: a runner that rests goes on taking memory for a while."""
        before, now = -1, self.own()
        while now != before:
            time.sleep(_REST_S)
            before, now = now, self.own()
        return now

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


@contextlib.contextmanager
def engine(home: Path) -> Iterator[tuple[EngineClient, Start]]:
    """The engine of a home, which has given its first token; it ends with the context."""
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
        resident_peak, own_peak = memory.resident_peak(), memory.own_peak
        start = Start(round(start_s, 2), round(start_cpu_s, 2), resident_peak, own_peak, memory.own_at_rest())
        yield client, start
    finally:
        client.close()
        process.terminate()
        process.wait()


def pair(plain: Path, sealed: Path, kind: str, *, num_bursts: int, num_tokens: int) -> Pair:
    """Start both engines in random order; then each works in turn while the other waits."""
    homes = [plain, sealed]
    with contextlib.ExitStack() as running:
        ups = {home: running.enter_context(engine(home)) for home in random.sample(homes, 2)}
        speeds: dict[Path, list[float]] = {plain: [], sealed: []}
        for number in range(num_bursts + 1):  # the first one warms caches and does not count
            for home in random.sample(homes, 2):
                speed = _speed(ups[home][0], num_tokens)
                speeds[home] += [round(speed, 1)] if number else []
    return Pair(kind, ups[plain][1], ups[sealed][1], speeds[plain], speeds[sealed])


def _speed(client: EngineClient, num_tokens: int) -> float:
    sampling = Sampling(max_tokens=num_tokens, temperature=0)
    started = time.perf_counter()
    work = [client.submit(range(10 + each, 74 + each), sampling, "") for each in range(_NUM_SEQUENCES)]
    total = sum(_finish(generation) for generation in work)
    return total / (time.perf_counter() - started)


def _finish(generation: Generation) -> int:
    count = 0
    while not isinstance(piece := generation.read(1), Finished):
        count += len(piece.ids if piece else [])
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
    logging.disable(logging.WARNING)  # the client logs the end of every engine
    parser = program.parser(__doc__)
    kinds = ("gguf", "openvino", "safetensors")
    parser.add_argument("--format", nargs="+", choices=kinds, default=list(kinds), help="what is kept of others stays")
    parser.add_argument("--rounds", type=int, default=8, help="pairs of starts")
    parser.add_argument("--bursts", type=int, default=6, help="of 16 sequences, for each engine of a pair")
    parser.add_argument("--tokens", type=int, default=64, help="of each sequence of a burst")
    parser.add_argument("--small", action="store_true", help="the embedded model as GGUF alone; not kept")
    arguments = parser.parse_args()
    sources = {"gguf": None} if arguments.small else _sources(Supply(arguments.cache), arguments.format)
    pairs: list[Pair] = []
    arguments.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.cache) as place:
        for kind, source in sources.items():
            plain, sealed = homes(Path(place), source, kind)
            for number in range(arguments.rounds + 1):  # the first one warms the page cache and does not count
                num_bursts = arguments.bursts if number else 0
                one = pair(plain, sealed, kind, num_bursts=num_bursts, num_tokens=arguments.tokens)
                print(one, flush=True)
                pairs += [one] if number else []
    print(table(pairs))
    if not arguments.small and not arguments.not_kept:
        pairs = sorted([*(one for one in kept() if one.kind not in sources), *pairs], key=lambda one: one.kind)
        page.save("sealed", {"pairs": [asdict(one) for one in pairs]}, table(pairs))


def kept() -> list[Pair]:
    """Those of the last runs."""
    pairs = json.loads((page.FOLDER / "sealed.json").read_text(encoding="utf-8"))["pairs"]
    return [Pair(**{**one, "plain": Start(**one["plain"]), "sealed": Start(**one["sealed"])}) for one in pairs]


def _sources(supply: Supply, kinds: Sequence[str]) -> dict[str, Path]:
    make = {
        "gguf": lambda: supply.gguf("Q8_0"),
        "openvino": lambda: supply.openvino("int8"),
        "safetensors": supply.hugging_face,
    }
    return {kind: make[kind]() for kind in kinds}


def table(pairs: Sequence[Pair]) -> str:
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
    for kind, of_kind in itertools.groupby(pairs, lambda one: one.kind):
        some = list(of_kind)
        sealed, plain = [one.sealed for one in some], [one.plain for one in some]
        ratio = _median(sealed, "start_s") / _median(plain, "start_s")
        more = _median(sealed, "resident_peak_mib") - _median(plain, "resident_peak_mib")
        faster = [one.faster() for one in some]
        speed = statistics.fmean(faster)
        error = statistics.stdev(faster) / math.sqrt(len(faster)) if len(faster) > 1 else math.inf
        speeds = (
            statistics.median(itertools.chain.from_iterable(each))
            for each in ((one.sealed_speeds for one in some), (one.plain_speeds for one in some))
        )
        cells = [
            f"{_both(sealed, plain, 'start_s')} s: {ratio:.2f}{_missed(ratio > _GOAL_RATIO)}",
            f"{_both(sealed, plain, 'start_cpu_s')} s",
            f"{_both(sealed, plain, 'resident_peak_mib')} MiB: {more:+.0f}{_missed(more > _GOAL_MIB)}",
            f"{_both(sealed, plain, 'own_peak_mib')} MiB",
            f"{_both(sealed, plain, 'own_rest_mib')} MiB",
            f"{' / '.join(f'{each:.0f}' for each in speeds)}: {speed:+.1%} ± {error:.1%}, {judge(-speed, error)}",
        ]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    counts = Counter(f"{len(one.plain_speeds)} bursts ({one.kind})" for one in pairs)
    goals = f"{_GOAL_RATIO} times the start, {_GOAL_MIB} MiB more, the same speed (within {GOAL:.0%})"
    times = ", ".join(f"{count} x {each}" for each, count in counts.items())
    how = (
        f"Medians of pairs of engines that were up together and given bursts in random order: {times}. Speed: the "
        "mean difference of the pairs, ± its standard error; within two standard errors of the goal it is undecided."
    )
    return "\n".join([*lines, "", f"Goals: at most {goals}. {how}"])


def _median(starts: Sequence[Start], name: str) -> float:
    return statistics.median(getattr(one, name) for one in starts)


def _both(sealed: Sequence[Start], plain: Sequence[Start], name: str) -> str:
    return f"{_median(sealed, name):g} / {_median(plain, name):g}"


def _missed(is_missed: bool) -> str:
    return " (missed)" if is_missed else ""


if __name__ == "__main__":
    main()
