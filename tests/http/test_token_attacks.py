"""The published attacks on JSON Web Tokens, through the real web process: every one is the same 401, at once."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass

import httpx
import pytest

from chatsvc.guard.credentials.keyring import KeyRing
from tests.guard.test_tokens import ALGORITHMS, b64, forged, good_claims


@dataclass
class Forger:
    """Has the server's own signing key, so that what it makes is refused for its flaw alone."""

    ring: KeyRing


@pytest.fixture(scope="module")
def forger(server):
    return Forger(KeyRing(server.settings.keys_directory, "HS256", keep_s=100_000))


@pytest.fixture(scope="module")
def genuine(server):
    answer = httpx.post(f"{server.url}/login", json={"username": "bob", "password": "bob's long password"}, timeout=30)
    return answer.json()["access_token"]


@pytest.fixture(scope="module")
def claims_of(genuine):
    """``claims_of(**changes)``: those of a living session, so that nothing else is wrong with them."""
    body = genuine.split(".")[1]
    living = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return lambda **changes: good_claims(**{**living, **changes})


HEADERS = [
    *({"alg": algorithm} for algorithm in ALGORITHMS),
    *({"alg": value} for value in (None, 1, True, ["HS256"], {"a": 1})),
    {"jwk": {"kty": "oct", "k": "AAAA"}},
    {"jku": "http://127.0.0.1:9/keys"},
    {"x5u": "http://127.0.0.1:9/cert"},
    {"x5c": ["AAAA"]},
    {"crit": ["exp"]},
    {"crit": ["exp"], "exp": 1},
    {"b64": False, "crit": ["b64"]},
    {"zip": "DEF"},
    *({"typ": typ} for typ in (None, "", "JWT", "rt+jwt", "AT+JWT", 1)),
    *({"kid": kid} for kid in (None, "", "../../../../dev/null", "/etc/passwd", "x' OR '1'='1", "\0", 1, ["a"])),
]
CLAIMS = [
    *({claim: None} for claim in ("iss", "sub", "aud", "iat", "nbf", "exp", "jti", "sid", "type")),
    *(
        {claim: value}
        for claim in ("sub", "sid", "jti", "type", "aud")
        for value in (1, True, ["chatsvc"], {}, "x" * 99)
    ),
    *({"exp": value} for value in ("1", 1.5, True, [1], -1, 0, 10**30, 1e300)),
    *({"iat": value} for value in ("1", 1.5, True, 10**30, -(10**30))),
    {"nbf": 10**12},
    {"type": "refresh"},
    {"type": "id"},
    {"iss": "somebody else"},
]


def attacks(forger, genuine, claims_of):
    """(name, token) of each."""
    head, body, signature = genuine.split(".")
    for header in HEADERS:
        yield f"header {header}", forged(forger, claims_of(), header)
        yield f"header {header}, no signature", forged(forger, claims_of(), header).rsplit(".", 1)[0] + "."
        yield f"header {header}, empty key", forged(forger, claims_of(), header, key=b"")
    for changes in CLAIMS:
        yield f"claims {changes}", forged(forger, claims_of(**changes))
    for claim in ("NaN", "Infinity", "1e999"):
        yield f"exp {claim}", forged(forger, json.dumps(claims_of(exp="HERE")).replace('"HERE"', claim))
    yield "no signature", f"{head}.{body}."
    yield "two parts", f"{head}.{body}"
    yield "zeros for a signature", f"{head}.{body}.{b64(bytes(32))}"
    yield "another's payload", f"{head}.{b64(json.dumps(claims_of(sub='admin')))}.{signature}"
    for ending in ("=", "==", ".", "%20", "\t.", "é"):
        yield f"appended {ending}", genuine + ending
    yield "nested header", f"{b64('[' * 2_900)}.{body}.{signature}"
    yield "nested payload", forged(forger, "[" * 2_000)
    yield "not an object", forged(forger, '"text"')


def ask(client, token):
    started_at = time.monotonic()
    answer = client.get("/me", headers={"Authorization": f"Bearer {token}".encode("utf-8", "surrogateescape")})
    return answer, time.monotonic() - started_at


def test_every_attack_is_the_same_401_at_once(server, forger, genuine, claims_of):
    bodies, slow = set(), []
    with httpx.Client(base_url=server.url, timeout=30) as client:
        assert (
            ask(client, forged(forger, claims_of()))[0].status_code == 200
        )  # the forger can forge: what follows fails for its flaw
        for name, token in attacks(forger, genuine, claims_of):
            answer, took_s = ask(client, token)
            assert answer.status_code == 401, (name, answer.status_code)
            assert answer.headers["WWW-Authenticate"] == "Bearer", name
            bodies.add(answer.text)
            slow += [(name, took_s)] if took_s > 5 else []
        assert len(bodies) == 1
        assert len(slow) <= 2, slow  # a second each; a busy machine may hiccup
        assert ask(client, genuine)[0].status_code == 200


@pytest.mark.parametrize("num_bytes", [5_000, 20_000, 1_000_000])
def test_a_token_of_a_megabyte_is_a_4xx_or_a_close(server, genuine, num_bytes):
    for token in ("a" * num_bytes, genuine + "A" * num_bytes, b64("[" * num_bytes) + "." + genuine):
        try:
            answer = httpx.get(f"{server.url}/me", headers={"Authorization": f"Bearer {token}"}, timeout=30)
        except httpx.TransportError:
            continue
        assert 400 <= answer.status_code < 500
    assert httpx.get(f"{server.url}/livez").status_code == 200


def test_json_that_is_nested_a_hundred_thousand_deep_is_a_4xx(server):
    for opened, closed in (("[", "]"), ('{"a":', "}")):
        body = opened * 100_000 + closed * 100_000
        for path in ("/chat", "/login", "/v1/chat/completions"):
            headers = {**server.headers, "Content-Type": "application/json"}
            answer = httpx.post(f"{server.url}{path}", content=body, headers=headers, timeout=30)
            assert 400 <= answer.status_code < 500, (path, answer.status_code)
            short = httpx.post(f"{server.url}{path}", content=body[:60_000], headers=headers, timeout=30)
            assert short.status_code == 400, (path, short.status_code)
