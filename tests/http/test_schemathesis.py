"""Schemathesis reads ``/openapi.json`` and sends what it allows and what it forbids: every check of its own, no finding."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import httpx
import pytest

from chatsvc.guard.assembly import assemble
from chatsvc.guard.credentials.api_keys import NewKey
from chatsvc.guard.principal import ALL_SCOPES
from chatsvc.wiring import guard_options

# Rules that no schema can say: which of two times is the earlier, whether a signature is good, which token ids the model of the
# moment has, and whose the last message is. Everything else is checked there too. A body that is too long is refused as surely as
# one that is too odd.
CONFIGURATION = """
[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 406, 409, 413, 415, 422, 428, 429, "5xx"]

[[operations]]
include-path = "/admin/audit/export"
[operations.checks]
positive_data_acceptance.enabled = false

[[operations]]
include-path = "/v1/completions"
[operations.checks]
positive_data_acceptance.enabled = false

[[operations]]
include-path = "/v1/chat/completions"
[operations.checks]
positive_data_acceptance.enabled = false

[[operations]]
include-path = "/audit/witness"
[operations.checks]
positive_data_acceptance.enabled = false
"""


@pytest.fixture(scope="module")
def small(serve, tmp_path_factory):
    """A server whose answers are short."""
    limits = {"CHATSVC_CHAT__DEFAULT_MAX_TOKENS": "2", "CHATSVC_CHAT__MAX_TOKENS_CAP": "4"}
    many = {"CHATSVC_LIMITS__REQUESTS_PER_MINUTE": "1000000"}
    with serve(tmp_path_factory.mktemp("small"), **limits, **many) as started:
        yield started


@pytest.fixture(scope="module")
def key(small):
    """A key with every scope, of an account that has them."""
    guard = assemble(guard_options(small.settings))
    try:
        guard.accounts.add("tester", "a long password, of nobody", guard.roles.names())
        return guard.api_keys.create(NewKey("tester", "schemathesis", sorted(ALL_SCOPES)))[0]
    finally:
        guard.close()


def run(server, tmp_path, *arguments):
    program = Path(sys.executable).with_name("schemathesis")
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    command = [program, "run", f"{server.url}/openapi.json", "--no-color", "--seed", "5", "--request-timeout", "60"]
    command += ["--max-examples", "2", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=580, check=False)
    (tmp_path / "found.txt").write_text(done.stdout)
    assert done.returncode == 0, done.stdout[-6000:]
    assert httpx.get(f"{server.url}/healthz").status_code == 200


def statuses(server, actor):
    """How often each status was answered to an account since the server was ready, by its own log."""
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    requests = [line for line in lines if "status" in line]
    ready = next(place for place, line in enumerate(requests) if (line["path"], line["status"]) == ("/readyz", 200))
    return Counter(line["status"] for line in requests[ready:] if line["actor"] == actor)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_schemathesis_with_a_key_finds_nothing(small, key, tmp_path):
    # It would send credentials of its own making beside ours, and two are 401 whatever the rest says.
    only_ours = ["--generation-with-security-parameters", "false"]
    run(small, tmp_path, "-H", f"Authorization: Bearer {key}", *only_ours)
    known = statuses(small, "tester")
    assert known[200] > 100  # most of what it sent came in
    assert known[400] > 100
    assert not any(status >= 500 for status in known)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_schemathesis_without_a_token_finds_nothing(small, tmp_path):
    run(small, tmp_path)
    strangers = statuses(small, None)
    assert strangers[401] > 100
    assert not any(status >= 500 for status in strangers)
