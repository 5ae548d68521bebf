"""Schemathesis reads ``/openapi.json`` and sends what it allows and what it forbids: every check of its own, no finding."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from chatsvc.guard.api_keys import NewKey
from chatsvc.guard.assembly import assemble
from chatsvc.wiring import guard_options

# They end the very credentials that the run needs, or give away new ones.
LEFT_OUT = ["/logout", "/password", "/admin/signing-keys/rotate", "/admin/audit/export"]


@pytest.fixture(scope="module")
def small(serve, tmp_path_factory):
    """A server whose answers are short."""
    limits = {"CHATSVC_CHAT__DEFAULT_MAX_TOKENS": "2", "CHATSVC_CHAT__MAX_TOKENS_CAP": "4"}
    many = {"CHATSVC_LIMITS__REQUESTS_PER_MINUTE": "1000000"}
    with serve(tmp_path_factory.mktemp("small"), **limits, **many) as started:
        yield started


@pytest.fixture(scope="module")
def key(small):
    """A key with every scope."""
    guard = assemble(guard_options(small.settings))
    try:
        return guard.api_keys.create(NewKey("admin", "schemathesis", ["admin", "audit", "chat", "metrics"]))[0]
    finally:
        guard.close()


def run(server, tmp_path, *arguments):
    program = Path(sys.executable).with_name("schemathesis")
    command = [program, "run", f"{server.url}/openapi.json", "--no-color", "--seed", "5", *arguments]
    for path in LEFT_OUT:
        command += ["--exclude-path", path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=200, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
    assert httpx.get(f"{server.url}/healthz").status_code == 200


@pytest.mark.slow
def test_schemathesis_with_a_key_finds_nothing(small, key, tmp_path):
    run(small, tmp_path, "-H", f"Authorization: Bearer {key}", "--max-examples", "2")


@pytest.mark.slow
def test_schemathesis_without_a_token_finds_nothing(small, tmp_path):
    run(small, tmp_path, "--phases", "coverage", "--exclude-path", "/login")
