"""The real processes: supervisor, gunicorn, engine with the embedded model, and Debian's nginx with a certificate made here."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

CHATSVC = [sys.executable, "-m", "chatsvc.cli.main"]
SERVER_NAME = "chat.test"
# The sockets are private to the account of the tests, so nginx's workers must be of that account too.
_NGINX_MAIN = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")
PASSWORD = "canary-password-4fb1c7"


def until(condition: Callable[[], object], timeout_s: float = 90, what: str = "it") -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen in time"
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Home:
    """A CHATSVC_HOME and the environment of every program that works on it."""

    path: Path
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CHATSVC_")}
        return {**inherited, "CHATSVC_HOME": str(self.path), **self.settings}

    def run(self, *arguments: str, check: bool = True, **more) -> subprocess.CompletedProcess:
        result = subprocess.run(
            [*CHATSVC, *arguments],
            check=False,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            **more,
        )
        assert not check or result.returncode == 0, result.stdout + result.stderr
        return result

    def add_account(self, name: str, password: str, role: str) -> None:
        self.run("user", "add", name, "--role", role, "--password-stdin", input=password + "\n")

    def bring_model(self) -> None:
        """The embedded model, active; fetched once for all homes of this machine."""
        code = (
            "from chatsvc.models.supply import embedded; from chatsvc.models.store import ModelStore; "
            "from chatsvc.settings.load import load; s = load(); s.home.mkdir(exist_ok=True); "
            "embedded.ensure(ModelStore(s.models_directory, s.keys_directory))"
        )
        subprocess.run([sys.executable, "-c", code], env=self.environment, check=True, timeout=300)


@dataclass
class Program:
    """A program that was started here, in a process group of its own, with its output in a file."""

    process: subprocess.Popen
    log: Path

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 60) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout_s)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(45)
                return
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="session")
def start() -> Iterator[Callable[..., Program]]:
    """Starts programs and ends them after the last test."""
    with contextlib.ExitStack() as stack:

        def start_program(arguments: list[str], environment: dict[str, str], log: Path) -> Program:
            with log.open("ab") as output:
                process = subprocess.Popen(
                    arguments,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            program = Program(process, log)
            stack.callback(program.end)
            return program

        yield start_program


@pytest.fixture(scope="session")
def make_home(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Home]:
    def make(name: str = "home", **settings: str) -> Home:
        path = tmp_path_factory.mktemp(name) / "home"
        path.mkdir(mode=0o700)
        return Home(path, {f"CHATSVC_{key}": value for key, value in settings.items()})

    return make


@dataclass
class Service:
    """The whole service behind nginx. ``port`` is the TLS port of the strict proxy, ``lax_port`` of one with an open list."""

    home: Home
    serve: Program
    port: int
    lax_port: int
    trust: ssl.SSLContext

    def client(self, address: str = "127.0.0.1", *, lax: bool = False, timeout_s: float = 60) -> httpx.Client:
        """A client that comes from an address of its own and knows the server by its name."""
        transport = httpx.HTTPTransport(verify=self.trust, local_address=address)
        port = self.lax_port if lax else self.port
        return httpx.Client(
            transport=_Named(transport, port), base_url=f"https://{SERVER_NAME}:{port}", timeout=timeout_s
        )

    def token(self, name: str = "alice") -> str:
        with self.client() as client:
            answer = client.post("/login", json={"username": name, "password": PASSWORD})
            assert answer.status_code == 200, answer.text
            return answer.json()["access_token"]

    def headers(self, name: str = "alice") -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token(name)}"}

    def health(self) -> int:
        with self.client(timeout_s=5) as client:
            return client.get("/healthz").status_code

    def pids(self) -> dict[str, list[int]]:
        """The processes below the supervisor, by what they are."""
        found: dict[str, list[int]] = {"engine": [], "web": []}
        for pid in descendants(self.serve.process.pid):
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                found["engine" if b"\0engine\0" in command else "web"].append(pid)
        return found


class _Named(httpx.BaseTransport):
    """Sends requests for the server's name to the loopback address, with the name in SNI and Host."""

    def __init__(self, transport: httpx.HTTPTransport, port: int) -> None:
        self._transport = transport
        self._port = port

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.url = request.url.copy_with(host="127.0.0.1", port=self._port)
        request.extensions = {**request.extensions, "sni_hostname": SERVER_NAME}
        return self._transport.handle_request(request)

    def close(self) -> None:
        self._transport.close()


def descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            text = stat.read_text()
            children.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
    found, left = [], [pid]
    while left:
        below = children.get(left.pop(), [])
        found += below
        left += below
    return found


def make_certificate(directory: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SERVER_NAME)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain, private = directory / "chain.pem", directory / "key.pem"
    chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return chain, private


@pytest.fixture(scope="session")
def service(
    make_home: Callable[..., Home], start: Callable[..., Program], tmp_path_factory: pytest.TempPathFactory
) -> Service:
    """One service for all tests of this folder that do not end it."""
    return boot(make_home, start, tmp_path_factory)


def boot(
    make_home: Callable[..., Home], start: Callable[..., Program], tmp_path_factory: pytest.TempPathFactory, **settings
) -> Service:
    if not nginx_program():
        pytest.skip("nginx is not installed")
    sockets = tmp_path_factory.mktemp("s")
    home = make_home(
        "service",
        GUARD__ALLOWED_NETWORKS='["127.0.0.1/32", "127.0.0.9/32"]',
        SERVER__SOCKET=str(sockets / "web.sock"),
        LIMITS__MAX_WAITING="24",
        **settings,
    )
    home.bring_model()
    home.add_account("alice", PASSWORD, "user")
    home.add_account("root", PASSWORD, "admin")
    serve = start([*CHATSVC, "serve"], home.environment, home.path / "serve.log")
    port, lax_port = free_port(), free_port()
    chain, key = make_certificate(sockets)
    for name, number in (("strict", port), ("lax", lax_port)):
        directory = sockets / name
        (directory / "run").mkdir(parents=True)
        home.run(
            "config", "nginx", "--output", str(directory), "--server-name", SERVER_NAME,
            "--certificate", str(chain), "--certificate-key", str(key), "--listen", f"127.0.0.1:{number}",
            "--run-directory", str(directory / "run"), "--access-log", str(home.path / "nginx-access.log"),
        )  # fmt: skip
        if name == "lax":
            (directory / "chatsvc" / "allow.conf").write_text("allow all;\n")
        arguments = [nginx_program(), "-p", str(directory), "-c", str(directory / "nginx.conf"), "-g", _NGINX_MAIN]
        start(arguments, dict(os.environ), home.path / "nginx-error.log")
    service = Service(home, serve, port, lax_port, ssl.create_default_context(cafile=str(chain)))

    def is_ready() -> bool:
        assert serve.process.poll() is None, serve.text
        with contextlib.suppress(httpx.TransportError), service.client() as client:
            return client.get("/readyz").status_code == 200
        return False

    until(is_ready, 60, "readiness")
    return service


def nginx_program() -> str | None:
    return shutil.which("nginx") or shutil.which("/usr/sbin/nginx")


@pytest.fixture(name="until", scope="session")
def until_fixture() -> Callable[..., None]:
    return until


@pytest.fixture(name="events", scope="session")
def events_fixture() -> Callable[[httpx.Response], Iterator[tuple[str, dict]]]:
    return events


def events(response: httpx.Response) -> Iterator[tuple[str, dict]]:
    """The events of a stream: name and data; comments are skipped."""
    name = "message"
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            yield name, json.loads(line[6:])
        elif not line:
            name = "message"


@pytest.fixture(name="free_port", scope="session")
def free_port_fixture() -> Callable[[], int]:
    return free_port


@pytest.fixture(scope="session")
def boot_service(
    make_home: Callable[..., Home], start: Callable[..., Program], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Service]:
    """``boot_service(SECTION__KEY="…")``: another whole service, for a test that changes or ends it."""
    return lambda **settings: boot(make_home, start, tmp_path_factory, **settings)
