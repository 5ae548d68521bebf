"""A sealed model in a real engine: its weights are on no mount, in no core file, in no swap; and it serves."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from chatsvc.engine.protocol import Sampling
from chatsvc.engine.web_side.client import EngineClient
from chatsvc.models.store import ModelStore
from chatsvc.models.supply.convert import convert
from tests.engine.conftest import read_all

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(280)]

ENGINE = [sys.executable, "-m", "chatsvc.cli.main", "engine"]
CANARY_BYTES = 48


@dataclass
class SealedHome:
    """A home whose active model is sealed, and pieces of the weights that nothing else holds by chance."""

    path: Path
    weights_bytes: int
    canaries: list[bytes]
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CHATSVC_")}
        return {**kept, "CHATSVC_HOME": str(self.path), "CHATSVC_MODELS__KEK_FILE": str(self.path.parent / "kek")}

    @property
    def socket(self) -> Path:
        return self.path / "run" / "engine.sock"

    def run(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "chatsvc.cli.main", *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def is_random(piece: bytes) -> bool:
    return len(set(piece)) > CANARY_BYTES // 2


@pytest.fixture(params=["gguf", "openvino", "safetensors"])
def sealed_home(request, tmp_path: Path, make_home) -> SealedHome:
    """The embedded model as GGUF, or a small one as a folder of OpenVINO's or of safetensors; sealed by the command."""
    home = make_home("sealed")
    store = ModelStore(home.path / "models", home.path / "keys")
    if request.param == "gguf":
        home.bring_model()
    else:
        from tests.shapes import tiny_qwen2  # noqa: PLC0415  (torch, only here)

        source = tmp_path / "tiny"
        source.mkdir()
        store.import_path(tiny_qwen2(source), "plain")
        if request.param == "openvino":
            convert(store, "plain", "int8", "converted")
            store.remove("plain")
        shutil.rmtree(source)
        store.activate("converted" if request.param == "openvino" else "plain")
    model = store.active()
    assert model is not None
    content = b"".join((model.path / name).read_bytes() for name in model.description().weights)
    places = range(len(content) // 3, len(content) - CANARY_BYTES, len(content) // 9)
    canaries = [piece for place in places if is_random(piece := content[place : place + CANARY_BYTES])]
    assert canaries
    kek = home.path.parent / "kek"
    kek.write_bytes(os.urandom(32))
    kek.chmod(0o400)
    sealed = SealedHome(home.path, len(content), canaries)
    sealed.run("model", "seal", model.name, "--key-file", str(kek))
    return sealed


class Watch:
    """Every file on every mount that a process writes, from the kernel (fanotify); each is kept open to be read later.

    inotify would have to name every folder of every mount, and could not read what has been unlinked since.
    """

    _CLOEXEC, _UNLIMITED, _ADD, _FILESYSTEM, _MODIFY, _CLOSE_WRITE = 1, 0x10, 1, 0x100, 0x2, 0x8
    _EVENT = struct.Struct("=IBBHQii")

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.fanotify_init(self._CLOEXEC | self._UNLIMITED, os.O_RDONLY | os.O_CLOEXEC)
        if self._fd < 0:
            pytest.skip("watching whole mounts needs root")
        self.mounts = [mount for mount in writable_mounts() if self._mark(mount)]
        self._files: dict[tuple[int, int], int] = {}
        self._pids: set[int] = set()
        self._thread = threading.Thread(target=self._read)

    def _mark(self, mount: str) -> bool:
        mask = ctypes.c_uint64(self._MODIFY | self._CLOSE_WRITE)
        flags = ctypes.c_uint(self._ADD | self._FILESYSTEM)
        return self._libc.fanotify_mark(self._fd, flags, mask, -100, mount.encode()) == 0

    def follow(self, pid: int) -> None:
        """What was written since the watch began is waiting in the kernel."""
        self._pids.add(pid)
        self._thread.start()

    def _read(self) -> None:
        while True:
            events = os.read(self._fd, 65536)
            while events:
                length, _, _, _, _, descriptor, pid = self._EVENT.unpack_from(events)
                events = events[length:]
                if pid == os.getpid():  # the end of this watch
                    os.close(descriptor)
                    return
                state = os.fstat(descriptor)
                if pid in self._pids and (state.st_dev, state.st_ino) not in self._files:
                    self._files[state.st_dev, state.st_ino] = descriptor
                else:
                    os.close(descriptor)

    def end(self, scratch: Path) -> dict[str, bytes]:
        """What is now in all these files, by where they were last."""
        with scratch.open("wb") as file:
            while self._thread.is_alive():
                file.write(b"the end")
                file.flush()
                time.sleep(0.05)
        found = {}
        for descriptor in self._files.values():
            found[str(Path(f"/proc/self/fd/{descriptor}").readlink())] = Path(
                f"/proc/self/fd/{descriptor}"
            ).read_bytes()
            os.close(descriptor)
        os.close(self._fd)
        return found


def writable_mounts() -> list[str]:
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    pseudo = {"proc", "sysfs", "cgroup", "cgroup2", "devpts", "debugfs", "tracefs", "mqueue", "bpf", "securityfs"}
    return [line[1] for line in lines if line[2] not in pseudo and "rw" in line[3].split(",")]


def holding(folders: list[Path], canaries: list[bytes]) -> list[Path]:
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    found = []
    for path in files:
        with contextlib.suppress(OSError):
            content = path.read_bytes()
            found += [path for canary in canaries if canary in content][:1]
    return found


@contextlib.contextmanager
def engine(home: SealedHome, log: Path, **more) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as output:
        process = subprocess.Popen(ENGINE, env=home.environment, stdout=output, stderr=output, **more)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def answer(home: SealedHome, process: subprocess.Popen[bytes], log: Path, until) -> list[int]:
    """Wait for the engine and let it generate."""
    until(lambda: process.poll() is not None or home.socket.exists(), 120, "the engine")
    assert process.poll() is None, log.read_text()
    client = EngineClient(home.socket, stall_timeout_s=60)
    client.start()
    try:
        until(lambda: client.status().ready, 30, "the connection")
        ids, _ = read_all(client.submit([1, 5, 9, 7], Sampling(max_tokens=8, temperature=0), ""))
        return ids
    finally:
        client.close()


def test_nothing_that_the_engine_writes_anywhere_holds_a_piece_of_the_weights(
    sealed_home: SealedHome, tmp_path: Path, until
) -> None:
    log = tmp_path / "engine.log"
    watch = Watch()
    assert {"/", "/dev/shm"} <= set(watch.mounts)
    with engine(sealed_home, log, cwd=tmp_path) as process:
        watch.follow(process.pid)
        assert answer(sealed_home, process, log, until)
        places = [sealed_home.path, tmp_path, Path("/dev/shm"), Path("/var/tmp")]
        assert holding(places, sealed_home.canaries) == []
        status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
        assert status["VmSwap"].split() == ["0", "kB"]
        assert int(status["VmLck"].split()[0]) * 1024 > sealed_home.weights_bytes  # it cannot be swapped out later
    written = watch.end(tmp_path / "scratch")
    assert any(path.startswith(str(log)) for path in written), "the watch has seen the engine's log"
    assert [path for path, content in written.items() if any(each in content for each in sealed_home.canaries)] == []


def test_the_watch_and_the_search_find_a_piece_that_was_written_and_unlinked(tmp_path: Path) -> None:
    canary = os.urandom(CANARY_BYTES)
    (tmp_path / "left").write_bytes(b"x" * 1000 + canary)
    assert holding([tmp_path], [canary]) == [tmp_path / "left"]
    watch = Watch()
    code = "import os,sys; d=sys.stdin.buffer.read(); f=open('/var/tmp/chatsvc-canary','wb'); os.unlink(f.name); f.write(d)"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        watch.follow(process.pid)
        process.communicate(b"y" * 5000 + canary)
    written = watch.end(tmp_path / "scratch")
    assert [path for path, content in written.items() if canary in content] == ["/var/tmp/chatsvc-canary (deleted)"]


def with_cores() -> None:
    """As much as this account may, so that only the engine's own limits are in the way."""
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))


def test_an_engine_that_crashes_leaves_no_core_file(sealed_home: SealedHome, tmp_path: Path, until) -> None:
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith(("|", "/")) or resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        pytest.skip("cores do not go to the working directory here")
    crash, cores = "import os; canary = os.urandom(9); os.kill(os.getpid(), 11)", tmp_path / "cores"
    cores.mkdir()
    subprocess.run([sys.executable, "-c", crash], cwd=cores, preexec_fn=with_cores, check=False)
    assert len(list(cores.iterdir())) == 1, "a process that does not protect itself leaves one"
    log, place = tmp_path / "engine.log", tmp_path / "place"
    place.mkdir()
    with engine(sealed_home, log, cwd=place, preexec_fn=with_cores) as process:
        assert answer(sealed_home, process, log, until)
        process.send_signal(signal.SIGSEGV)
        assert process.wait(60) == -signal.SIGSEGV
    assert list(place.iterdir()) == []
    assert holding([sealed_home.path, tmp_path, Path("/dev/shm")], sealed_home.canaries) == []
