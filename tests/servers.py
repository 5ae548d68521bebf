"""Real servers that others wrote, each on a free port of the loopback address: databases, Redis, directory, provider."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from glob import glob
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

POSTGRES_BIN = next(iter(sorted(glob("/usr/lib/postgresql/*/bin"), reverse=True)), None)  # noqa: PTH207


SLAPD = shutil.which("slapd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
DIRECTORY_PASSWORD = "the directory's password"


def free_port():
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def nobodys_account():
    """PostgreSQL refuses to run as root."""
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


class Postgres:
    """A server of its own, on a free port of the loopback address."""

    def __init__(self, folder):
        self.folder = folder
        self.port = free_port()
        self._as = nobodys_account() if os.geteuid() == 0 else None
        if self._as:
            os.chown(folder, self._as.pw_uid, self._as.pw_gid)
        self._run(
            "initdb",
            "-D",
            str(folder / "data"),
            "-U",
            "chatsvc",
            "-A",
            "trust",
            "--no-sync",
            "-E",
            "UTF8",
            "--no-locale",
        )

    @property
    def url(self):
        return f"postgresql://chatsvc@127.0.0.1:{self.port}/postgres"

    def start(self):
        options = f"-h 127.0.0.1 -p {self.port} -k {self.folder} -c fsync=off -c max_connections=200"
        self._run(
            "pg_ctl", "start", "-w", "-D", str(self.folder / "data"), "-o", options, "-l", str(self.folder / "log")
        )

    def stop(self):
        self._run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", str(self.folder / "data"))

    @contextmanager
    def hanging(self):
        """Every process of it stands still: connections are there, and nobody answers."""
        postmaster = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(postmaster, signal.SIGSTOP)  # the first, so that it makes no more
        backends = [int(pid) for pid in Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()]
        for pid in backends:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in [*backends, postmaster]:
                os.kill(pid, signal.SIGCONT)

    def _run(self, program, *arguments):
        identity = {"user": self._as.pw_uid, "group": self._as.pw_gid, "extra_groups": []} if self._as else {}
        subprocess.run(
            [str(Path(POSTGRES_BIN) / program), *arguments],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.folder, **identity,
        )  # fmt: skip


@pytest.fixture(scope="module")
def postgres():
    if POSTGRES_BIN is None or (os.geteuid() == 0 and nobodys_account() is None):
        pytest.skip("PostgreSQL's server is not installed here (Debian: apt-get install postgresql)")
    # Not below pytest's own folder, which belongs to root alone.
    folder = Path(subprocess.run(["mktemp", "-d"], check=True, capture_output=True, text=True).stdout.strip())
    server = Postgres(folder)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder)


@pytest.fixture
def redis(tmp_path):
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("Redis is not installed here (Debian: apt-get install redis-server)")
    server = Redis(program, tmp_path)
    server.start()
    yield server
    server.stop()


class Server:
    """A program that listens on a free port of the loopback address; ready when somebody listens there."""

    def __init__(self, command, port):
        self._command, self._port = command, port
        self._process = None

    def start(self):
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with closing(socket.socket()) as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            time.sleep(0.02)
        pytest.fail(f"{self._command[0]} did not start")

    @contextmanager
    def hanging(self):
        """It stands still: connections are there, and nobody answers."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def stop(self):
        self._process.terminate()
        self._process.wait()


class Redis(Server):
    """A Redis of its own."""

    def __init__(self, program, folder):
        self.port = free_port()
        command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
        super().__init__(command, self.port)

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}/0"


@contextmanager
def openid_provider(*people):
    """An OpenID provider that others wrote, who knows these people by their claims; its address."""
    port = free_port()
    claims = [part for person in people for part in ("--user-claims", json.dumps(person))]
    with subprocess.Popen(
        [sys.executable, "-m", "oidc_provider_mock", "--port", str(port), *claims],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 30
        try:
            while time.monotonic() < deadline:
                try:
                    httpx.get(f"{url}/.well-known/openid-configuration", timeout=2)
                    break
                except httpx.TransportError:
                    time.sleep(0.05)
            yield url
        finally:
            process.terminate()


SLAPD_CONFIGURATION = """
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile {folder}/slapd.pid
TLSCertificateFile {folder}/server.pem
TLSCertificateKeyFile {folder}/server.key
database mdb
suffix "dc=example,dc=org"
rootdn "cn=root,dc=example,dc=org"
rootpw "the root's password"
directory {folder}/data
access to attrs=userPassword by anonymous auth by * none
access to dn.subtree="ou=hidden,dc=example,dc=org" by * none
access to * by dn.exact="cn=chatsvc,dc=example,dc=org" read by anonymous {anonymous} by * none
"""

DIRECTORY = f"""
dn: dc=example,dc=org
objectClass: dcObject
objectClass: organization
dc: example
o: Example

dn: cn=chatsvc,dc=example,dc=org
objectClass: organizationalRole
objectClass: simpleSecurityObject
cn: chatsvc
userPassword: the service's password

dn: ou=people,dc=example,dc=org
objectClass: organizationalUnit
ou: people

dn: uid=carol,ou=people,dc=example,dc=org
objectClass: inetOrgPerson
uid: carol
cn: Carol
sn: C
userPassword: {DIRECTORY_PASSWORD}

dn: uid=dave,ou=people,dc=example,dc=org
objectClass: inetOrgPerson
uid: dave
uid: twin
cn: Dave
sn: D
userPassword: {DIRECTORY_PASSWORD}

dn: uid=twin,ou=people,dc=example,dc=org
objectClass: inetOrgPerson
uid: twin
cn: Twin
sn: T
userPassword: {DIRECTORY_PASSWORD}

dn: uid=Pat O'Neil,ou=people,dc=example,dc=org
objectClass: inetOrgPerson
uid: Pat O'Neil
cn: Pat
sn: O'Neil
mail: pat@example.org
userPassword: {DIRECTORY_PASSWORD}

dn: ou=groups,dc=example,dc=org
objectClass: organizationalUnit
ou: groups

dn: cn=chatters,ou=groups,dc=example,dc=org
objectClass: groupOfNames
cn: chatters
member: uid=carol,ou=people,dc=example,dc=org

dn: cn=operators,ou=groups,dc=example,dc=org
objectClass: groupOfNames
cn: operators
member: uid=carol,ou=people,dc=example,dc=org

dn: cn=others,ou=groups,dc=example,dc=org
objectClass: groupOfNames
cn: others
member: uid=dave,ou=people,dc=example,dc=org
"""


def write_certificate(folder):
    key = generate_private_key(SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    (folder / "server.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "server.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


class Slapd(Server):
    """A directory of its own, in the clear and by TLS."""

    def __init__(self, folder):
        self.folder = folder
        self.plain, self.tls = free_port(), free_port()
        (folder / "data").mkdir()
        write_certificate(folder)
        (folder / "slapd.conf").write_text(SLAPD_CONFIGURATION.format(folder=folder, anonymous="auth"))
        add = [str(Path(SLAPD).parent / "slapadd"), "-f", str(folder / "slapd.conf")]
        subprocess.run(add, input=DIRECTORY, text=True, check=True, capture_output=True)
        urls = f"ldap://127.0.0.1:{self.plain} ldaps://127.0.0.1:{self.tls}"
        super().__init__([SLAPD, "-f", str(folder / "slapd.conf"), "-h", urls, "-d", "0"], self.tls)


@pytest.fixture(scope="module")
def slapd(tmp_path_factory):
    if SLAPD is None:
        pytest.skip("slapd is not installed here (Debian: apt-get install slapd)")
    server = Slapd(tmp_path_factory.mktemp("slapd"))
    server.start()
    yield server
    server.stop()
