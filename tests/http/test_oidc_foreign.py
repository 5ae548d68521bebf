"""What providers do that ours in other tests does not: TLS by a private authority, odd names and groups, unknown keys, silence.

The provider is one that others wrote, behind TLS; only its key set is added to, as newer providers do.
"""

from __future__ import annotations

import importlib.util
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from joserfc.jwk import OKPKey

pytest.importorskip("authlib", reason="the extra 'directory' is not installed")
if importlib.util.find_spec("oidc_provider_mock") is None:
    pytest.skip("the extra 'dev' is not installed", allow_module_level=True)
from joserfc import jwt

from chatsvc.app import running_in
from tests.servers import write_certificate

CHROMIUM = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
PEOPLE = {
    "quote": {"preferred_username": "Pat O'Neil", "groups": "chatters"},
    "domain": {"preferred_username": "CORP\\pat|x #1", "groups": None},
    "long": {"preferred_username": "x" * 300, "groups": [{"name": "chatters"}, {"id": 7}, None, ["chatters"]]},
    "keycloak": {"preferred_username": "kim", "realm_access": {"roles": ["chatters"]}},
    "zitadel": {"preferred_username": "zoe", "groups": {"chatters": {"1": "example"}, "admins": False}},
    "number": {"preferred_username": 7, "groups": 7},
    "first": {"preferred_username": "sam", "groups": ["chatters"]},
    "second": {"preferred_username": "SAM", "groups": ["chatters"]},
    "admin": {"preferred_username": "ＡＤＭＩＮ", "groups": ["chatters"]},
}
NAMES = {
    "quote": ("Pat_O_Neil", ["user"]),
    "domain": ("CORP_pat_x_1", []),
    "long": ("x" * 55 + ".", ["user"]),
    "keycloak": ("kim", []),
    "zitadel": ("zoe", ["user"]),
}
ODD_KEYS = [
    {"kty": "AKP", "alg": "ML-DSA-44", "kid": "post-quantum", "pub": "AAAA"},
    {"kty": "EC", "crv": "secp256k1", "kid": "unknown-curve", "x": "AA", "y": "AA"},
    {"kty": "EC", "crv": "P-999", "kid": "no-curve", "x": "AA", "y": "AA"},
    {"kty": "OKP", "crv": "X25519", "kid": "agreement", "x": "AAAA"},
    {"kty": "RSA", "use": "enc", "alg": "RSA-OAEP", "kid": "encryption", "n": "AQAB", "e": "AQAB"},
    {"kty": "RSA", "kid": "broken", "n": 7},
    {"kty": "oct", "kid": "secret", "k": "AAAA"},
    {"kty": ["RSA"]},
    {"alg": {}},
    "no key",
    None,
]


@pytest.fixture(scope="module")
def provider(tmp_path_factory):
    """Its address and the certificate that vouches for it."""
    folder = tmp_path_factory.mktemp("provider")
    write_certificate(folder)
    (folder / "people.json").write_text(json.dumps({"people": PEOPLE, "keys": ODD_KEYS}))
    program = [sys.executable, str(Path(__file__).parents[1] / "foreign_provider.py"), str(folder)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        yield f"https://localhost:{process.stdout.readline().strip()}", folder / "server.pem"
        process.terminate()


@pytest.fixture
def settings(provider):
    url, certificate = provider
    return {
        "CHATSVC_OIDC__ISSUER": url,
        "CHATSVC_OIDC__CA_FILE": str(certificate),
        "CHATSVC_OIDC__CLIENT_SECRET": "a client secret",
        "CHATSVC_OIDC__REDIRECT_URL": "https://localhost/oidc/callback",
        "CHATSVC_OIDC__ROLES": '{"chatters": "user"}',
        "CHATSVC_OIDC__API_AUDIENCE": "chatsvc-api",
    }


@pytest.fixture
def app(make_app, settings):
    return make_app(with_model=False, **settings)


def browser(app):
    client = app.test_client()
    client.environ_base["wsgi.url_scheme"] = "https"
    return client


def log_in(app, provider, sub):
    """Who came in, as ``/me`` says it; where they came back to where nobody did."""
    client = browser(app)
    there = client.get("/oidc/login").headers["Location"]
    verify = ssl.create_default_context(cafile=provider[1])
    back = urlsplit(httpx.post(there, data={"sub": sub}, timeout=10, verify=verify).headers["Location"])
    answer = client.get(f"{back.path}?{back.query}")
    if answer.headers["Location"] != "/#oidc":
        return answer.headers["Location"]
    token = client.post("/oidc/tokens").json["access_token"]
    return client.get("/me", headers={"Authorization": f"Bearer {token}"}).json


def reasons(app):
    directory = running_in(app).settings.audit_directory
    lines = [line for path in directory.glob("*.jsonl") for line in path.read_bytes().splitlines()]
    found = [json.loads(line) for line in lines if b'"auth.oidc"' in line]
    return [record["reason"] for record in found if record.get("outcome") == "denied"]


def test_names_and_groups_of_any_shape_come_in_by_the_stated_rule(app, provider):
    for sub, (name, roles) in NAMES.items():
        found = log_in(app, provider, sub)
        assert found["principal"].startswith(name), sub
        assert found["roles"] == roles, sub
        assert len(found["principal"]) <= 64


def test_groups_are_found_at_a_dotted_path(make_app, settings, provider):
    app = make_app(with_model=False, **settings, CHATSVC_OIDC__GROUPS_CLAIM="realm_access.roles")
    assert log_in(app, provider, "keycloak")["roles"] == ["user"]
    assert log_in(app, provider, "quote")["roles"] == []


def test_two_people_of_one_name_are_two_accounts_and_one_person_is_one(app, provider):
    first, second = log_in(app, provider, "first"), log_in(app, provider, "second")
    assert first["account_id"] != second["account_id"]
    assert (first["principal"], second["principal"][:4]) == ("sam", "SAM.")
    assert log_in(app, provider, "first")["account_id"] == first["account_id"]
    assert log_in(app, provider, "second")["account_id"] == second["account_id"]


def test_the_log_says_why_somebody_was_turned_away(app, provider):
    assert log_in(app, provider, "number") == "/#oidc-refused"
    assert log_in(app, provider, "admin") == "/#oidc-refused"
    running_in(app).guard.accounts.set_disabled(log_in(app, provider, "first")["principal"], disabled=True)
    assert log_in(app, provider, "first") == "/#oidc-refused"
    assert all(word in reason for word, reason in zip(("name_claim", "local", "disabled"), reasons(app), strict=True))


def test_a_certificate_of_a_private_authority_needs_ca_file(make_app, settings, provider):
    del settings["CHATSVC_OIDC__CA_FILE"]
    answer = make_app(with_model=False, **settings).test_client().get("/oidc/login")
    assert (answer.status_code, answer.json["error"]["code"]) == (503, "identity_unavailable")


def test_the_cookies_belong_to_this_host_alone_behind_https(app, make_app, settings, tmp_path):
    cookie = browser(app).get("/oidc/login").headers["Set-Cookie"]
    assert cookie.startswith("__Host-chatsvc-oidc-flow=")
    assert {"Secure", "Path=/", "HttpOnly", "SameSite=Lax"} <= set(cookie.split("; "))
    assert "Domain" not in cookie
    plain = {**settings, "CHATSVC_OIDC__REDIRECT_URL": "http://localhost:8080/oidc/callback"}
    trial = make_app(with_model=False, home=tmp_path / "trial", **plain).test_client()
    cookie = trial.get("/oidc/login").headers["Set-Cookie"]
    assert cookie.startswith("chatsvc-oidc-flow=")
    assert "Secure" not in cookie.split("; ")


def test_a_cookie_that_another_host_of_the_domain_could_have_put_there_is_not_looked_at(app, provider):
    client = browser(app)
    there = client.get("/oidc/login").headers["Location"]
    value = client.get_cookie("__Host-chatsvc-oidc-flow", domain="localhost").value
    other = browser(app)
    other.set_cookie("chatsvc-oidc-flow", value)
    verify = ssl.create_default_context(cafile=provider[1])
    back = urlsplit(httpx.post(there, data={"sub": "first"}, timeout=10, verify=verify).headers["Location"])
    assert other.get(f"{back.path}?{back.query}").headers["Location"] == "/#oidc-refused"


@contextmanager
def silent_provider():
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def forged(issuer):
    now = int(time.time())
    claims = {"iss": issuer, "aud": "chatsvc-api", "sub": "x", "iat": now, "exp": now + 600}
    key = OKPKey.generate_key("Ed25519")
    return jwt.encode({"alg": "Ed25519", "kid": "unknown"}, claims, key, algorithms=["Ed25519"])


def test_twelve_forged_bearers_do_not_wait_for_a_silent_provider_one_after_the_other(make_app, settings):
    with silent_provider() as issuer:
        app = make_app(with_model=False, **{**settings, "CHATSVC_OIDC__ISSUER": issuer})
        headers = {"Authorization": f"Bearer {forged(issuer)}"}
        started_at, answers = time.monotonic(), []

        def ask():
            answers.append(app.test_client().get("/me", headers=headers).status_code)

        threads = [threading.Thread(target=ask) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [503] * 12
        assert time.monotonic() - started_at < 20  # 60 s one after the other
        page = app.test_client().get("/oidc/login", headers={"Accept": CHROMIUM})
        assert (page.status_code, page.content_type) == (503, "text/html; charset=utf-8")
        assert "checks logins" in page.text
        assert "身份认证" in page.text


@pytest.mark.parametrize(
    "change",
    [
        {"authorization_endpoint": "http://id.example.org/authorize"},
        {"authorization_endpoint": "https://["},
        {"authorization_endpoint": 7},
        {"issuer": []},
    ],
)
def test_metadata_that_cannot_be_believed_is_an_outage(app, monkeypatch, change):
    found = running_in(app).provider
    original = found._get
    monkeypatch.setattr(found, "_get", lambda url: {**original(url), **change})
    answer = browser(app).get("/oidc/login")
    assert (answer.status_code, answer.json["error"]["code"]) == (503, "identity_unavailable")


def test_a_provider_that_goes_down_before_the_callback_shows_a_page(make_app, settings, provider):
    app = make_app(with_model=False, **settings)
    client = browser(app)
    client.get("/oidc/login")
    running_in(app).provider._metadata["token_endpoint"] = "https://localhost:1/token"
    there = client.get("/oidc/login").headers["Location"]
    verify = ssl.create_default_context(cafile=provider[1])
    back = urlsplit(httpx.post(there, data={"sub": "first"}, timeout=10, verify=verify).headers["Location"])
    page = client.get(f"{back.path}?{back.query}", headers={"Accept": CHROMIUM})
    assert (page.status_code, page.content_type) == (503, "text/html; charset=utf-8")
