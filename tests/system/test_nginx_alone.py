"""What nginx answers itself, in a network namespace with addresses of its own and without a web process behind it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from chatsvc.cli.checks import nginx_files
from chatsvc.resources import resource_path
from tests.system.conftest import make_certificate, nginx_program

pytestmark = pytest.mark.system

# Three clients in two /64 networks; the second has two addresses.
ADDRESSES = ["fd00:0:0:1::1", "fd00:0:0:2::1", "fd00:0:0:2::ffff"]
SECURITY_HEADERS = {
    "strict-transport-security",
    "x-content-type-options",
    "x-frame-options",
    "referrer-policy",
    "cache-control",
    "content-security-policy",
    "x-request-id",
}
CLIENT = """
import json, ssl, sys, httpx
trust = ssl.create_default_context(cafile=sys.argv[1])

def ask(source, method, path, port=8443, scheme="https", **more):
    host = "[::1]" if ":" in source else "127.0.0.1"
    transport = httpx.HTTPTransport(verify=trust, local_address=source, retries=0)
    with httpx.Client(transport=transport, base_url=f"{scheme}://{host}:{port}", timeout=10) as client:
        headers = {"Host": "chat.test", **more.pop("headers", {})}
        answer = client.request(method, path, headers=headers, extensions={"sni_hostname": "chat.test"}, **more)
    return {"status": answer.status_code, "headers": dict(answer.headers), "text": answer.text}

page = {"Accept": "text/html,application/xhtml+xml"}
found = {
    "login": {source: [ask(source, "POST", "/login")["status"] for _ in range(60)] for source in ADDRESSES[:2]},
    "neighbour": ask(ADDRESSES[2], "POST", "/login")["status"],
    "down": ask("127.0.0.1", "GET", "/healthz"),
    "down_page": ask("127.0.0.1", "GET", "/", headers=page),
    "denied": ask("127.0.0.2", "GET", "/healthz"),
    "denied_page": ask("127.0.0.2", "GET", "/", headers=page),
    "too_large": ask("127.0.0.1", "POST", "/chat", content=b"x" * 70000),
    "http_get": ask("127.0.0.1", "GET", "/docs?x=1", port=8080, scheme="http"),
    "http_post": ask("127.0.0.1", "POST", "/login", port=8080, scheme="http", content=b"{}"),
    "http_denied": ask("127.0.0.2", "GET", "/", port=8080, scheme="http"),
}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the clients were answered."""
    program = nginx_program()
    if not program or os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("needs root, nginx, iproute2 and unshare: a network namespace is made")
    folder = tmp_path_factory.mktemp("nginx")
    chain, key = make_certificate(folder)
    (folder / "run").mkdir()
    options = nginx_files.NginxOptions(
        server_name="chat.test", listen=("8443", "[::]:8443"), redirect=("8080",), certificate=str(chain),
        certificate_key=str(key), socket=str(folder / "nobody.sock"), run_directory=str(folder / "run"),
        access_log=str(folder / "access.log"),
    )  # fmt: skip
    values = nginx_files.nginx_values(options, max_body_bytes=65536, max_chats=100, deadline_s=300)
    for name in nginx_files.TEMPLATES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(nginx_files.fill_in(resource_path(f"nginx/{name}").read_text(), values))
    (folder / nginx_files.ALLOW_LIST).write_text("allow 127.0.0.1;\nallow fd00::/16;\ndeny all;\n")
    addresses = "".join(f"ip -6 addr add {address}/128 dev lo nodad\n" for address in ADDRESSES)
    (folder / "client.py").write_text(f"ADDRESSES = {ADDRESSES!r}\n{CLIENT}")
    nginx = f"{program} -p {folder} -c {folder}/nginx.conf"
    script = (
        f"set -e\nip link set lo up\n{addresses}{nginx} -g 'user root;'\n"
        f"trap '{nginx} -s stop' EXIT\n{sys.executable} {folder}/client.py {chain}\n"
    )
    result = subprocess.run(
        ["unshare", "--net", "sh", "-c", script], capture_output=True, text=True, check=False, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_a_network_of_64_bits_shares_one_limit_and_another_has_its_own(found: dict) -> None:
    first, second = (found["login"][address] for address in ADDRESSES[:2])
    assert first.count(429) > 0
    assert first[:50] == second[:50] == [503] * 50
    assert found["neighbour"] == 429


@pytest.mark.parametrize(
    "case", ["down", "down_page", "denied", "denied_page", "too_large", "http_denied", "http_post"]
)
def test_every_refusal_carries_the_security_headers(found: dict, case: str) -> None:
    assert found[case]["headers"].keys() >= SECURITY_HEADERS


@pytest.mark.parametrize(("case", "status"), [("down", 503), ("denied", 403), ("too_large", 413), ("http_post", 403)])
def test_a_program_gets_the_shape_of_every_other_error(found: dict, case: str, status: int) -> None:
    answer = found[case]
    assert answer["status"] == status
    assert answer["headers"]["content-type"] == "application/json"
    assert json.loads(answer["text"])["error"].keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize(("case", "status"), [("down_page", 503), ("denied_page", 403)])
def test_a_person_gets_a_page_in_both_languages(found: dict, case: str, status: int) -> None:
    answer = found[case]
    assert answer["status"] == status
    assert answer["headers"]["content-type"] == "text/html; charset=utf-8"
    assert answer["text"].startswith("<!doctype html>")
    assert 'lang="zh-CN"' in answer["text"]


def test_plain_http_sends_a_browser_to_https_and_refuses_whatever_carries_a_body(found: dict) -> None:
    assert found["http_get"]["status"] == 308
    assert found["http_get"]["headers"]["location"] == "https://chat.test/docs?x=1"
    assert "Use https" in found["http_post"]["text"]


def test_the_templates_are_in_the_installation() -> None:
    assert {
        path.relative_to(resource_path("nginx")).as_posix() for path in Path(resource_path("nginx")).rglob("*.conf")
    } == set(nginx_files.TEMPLATES)
