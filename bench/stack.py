"""The whole service as it is deployed: nginx with TLS, gunicorn, the engine; accounts, tokens and the audit log on.

``chatsvc`` is only ever used by its command line, so what is measured is what an operator gets. The limits on one
principal are raised, because all streams of a measurement come from one account.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import http.client
import json
import os
import secrets
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bench.load import Target
from bench.processes import free_port, running, wait_for
from bench.supply import Supply

ACCOUNTS = ("bench", "bench-other")
_PASSWORD = secrets.token_urlsafe(24)
_NEW_LOGIN_S = 240  # an access token lives for ten minutes
_CHATSVC = [sys.executable, "-m", "chatsvc.cli.main"]


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What is served and how. ``settings`` are ``section.key`` to value, as in chatsvc.toml; ``prefix`` runs it."""

    home: Path
    model: Path
    model_name: str
    settings: Mapping[str, object] = field(default_factory=dict)
    cgroup: Path | None = None
    prefix: tuple[str, ...] = ()


def shaped(cache: Path, runner: str = "native", settings: Mapping[str, object] | None = None) -> StackOptions:
    """The random model in Qwen1.5-0.5B-Chat's shape, for ``native``, ``openvino`` (int8) or ``openvino-int4``."""
    supply = Supply(cache)
    home = cache / f"home-{runner}"
    if runner.startswith("openvino"):
        model = supply.openvino("int4" if runner == "openvino-int4" else "int8")
        return StackOptions(home, model, model.name, {"engine.runner": "openvino", **(settings or {})})
    model = supply.hugging_face()
    # A random model repeats itself for ever, so guesses would all be right: faster than any real text would be.
    return StackOptions(home, model, model.name, {"engine.max_draft_tokens": 0, **(settings or {})})


class Login:
    """Logs in when asked for headers and the last token grows old."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext, account: str = ACCOUNTS[0]) -> None:
        self._address = (host, port, tls)
        self._account = account
        self._token = ""
        self._until = 0.0

    def __call__(self) -> Mapping[str, str]:
        """The Authorization header."""
        if time.monotonic() > self._until:
            host, port, tls = self._address
            connection = http.client.HTTPSConnection(host, port, timeout=30, context=tls)
            body = json.dumps({"username": self._account, "password": _PASSWORD})
            connection.request("POST", "/login", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = json.loads(response.read())
            connection.close()
            if response.status != 200:
                raise RuntimeError(f"login: {response.status} {answer}")
            self._token = answer["access_token"]
            self._until = time.monotonic() + _NEW_LOGIN_S
        return {"Authorization": f"Bearer {self._token}"}


def as_other(target: Target) -> Target:
    """The same service, asked by another principal."""
    assert target.tls
    return replace(target, headers=Login(target.host, target.port, target.tls, ACCOUNTS[1]))


@contextlib.contextmanager
def stack(options: StackOptions) -> Iterator[Target]:
    """The service, ready; the target logs in by itself."""
    home = options.home
    for folder in (home, home / "tls", home / "nginx", home / "nginx-run"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    port = free_port()
    tls = _certificate(home / "tls")
    (home / "chatsvc.toml").write_text(_configuration(options))
    _prepare(options, port)
    target = Target("chatsvc", "localhost", port, tls, Login("localhost", port, tls))
    environment = {"CHATSVC_HOME": str(home)}
    directives = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")  # the web process's socket is ours alone
    nginx = ["nginx", "-p", home / "nginx", "-c", home / "nginx" / "nginx.conf", "-g", directives]
    serve = [*options.prefix, *_in_cgroup(options.cgroup), *_CHATSVC, "serve"]
    with (
        running(serve, home / "serve.log", environment) as service,
        running(nginx, home / "nginx.log"),
    ):
        wait_for(target, "/readyz", service, home / "serve.log")
        target.headers()
        yield target


def _prepare(options: StackOptions, port: int) -> None:
    """Model, account and nginx's files, each by the command an operator would type."""
    home = options.home
    secret = _PASSWORD + "\n"
    if not (home / "models" / options.model_name).exists():
        _chatsvc(home, "model", "import", str(options.model), "--name", options.model_name)
    _chatsvc(home, "model", "activate", options.model_name)
    there = _chatsvc(home, "user", "list", "--json")
    for account in ACCOUNTS:
        if f'"{account}"' not in there:
            _chatsvc(home, "user", "add", account, "--role", "user", "--password-stdin", standard_input=secret)
        else:
            _chatsvc(home, "user", "passwd", account, "--password-stdin", standard_input=secret)
    tls = home / "tls"
    where = ["--output", str(home / "nginx"), "--run-directory", str(home / "nginx-run")]
    names = ["--server-name", "localhost", "--listen", f"127.0.0.1:{port}"]
    certificate = ["--certificate", str(tls / "cert.pem"), "--certificate-key", str(tls / "key.pem")]
    _chatsvc(home, "config", "nginx", *where, *names, *certificate, "--access-log", str(home / "access.log"))


def _chatsvc(home: Path, *arguments: str, standard_input: str = "") -> str:
    done = subprocess.run(
        [*_CHATSVC, *arguments],
        input=standard_input,
        capture_output=True,
        text=True,
        env={**os.environ, "CHATSVC_HOME": str(home)},
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"chatsvc {' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def _in_cgroup(cgroup: Path | None) -> list[str]:
    """A prefix that makes the command, and all it starts, count in a memory cgroup."""
    return [] if cgroup is None else ["sh", "-c", f'echo $$ > {cgroup}/cgroup.procs && exec "$@"', "sh"]


def _configuration(options: StackOptions) -> str:
    values: dict[str, object] = {
        "server.socket": str(options.home / "run" / "web.sock"),
        "guard.allowed_networks": ["127.0.0.0/8"],
        "limits.requests_per_minute": 1_000_000,
        "limits.tokens_per_day": 1_000_000_000,
        "limits.max_concurrent_per_principal": 1000,
        "models.offline": True,
        **options.settings,
    }
    sections: dict[str, list[str]] = {}
    for name, value in values.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, []).append(f"{key} = {json.dumps(value)}")
    return "\n".join(f"[{section}]\n" + "\n".join(lines) + "\n" for section, lines in sections.items())


def _certificate(folder: Path) -> ssl.SSLContext:
    """A self-signed certificate for localhost, and a client's context that trusts nothing else."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    (folder / "cert.pem").write_bytes(pem)
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (folder / "key.pem").chmod(0o600)
    return ssl.create_default_context(cadata=pem.decode())
