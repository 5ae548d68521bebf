"""Logging in by a real OpenID provider that others wrote, and its tokens as bearer of tools."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import re
import time
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import OctKey, OKPKey, RSAKey

pytest.importorskip("authlib", reason="the extra 'directory' is not installed")
if importlib.util.find_spec("oidc_provider_mock") is None:
    pytest.skip("the extra 'dev' is not installed", allow_module_level=True)

from chatsvc.app import running_in
from chatsvc.errors import AuthenticationFailed, OperatorError, StoreUnavailable
from chatsvc.guard.gate import Credentials
from chatsvc.guard.principal import ANY_PRINCIPAL
from chatsvc.guard.providers.oidc import Flow, OidcOptions, OidcProvider
from tests.servers import free_port, openid_provider

CAROL = {"sub": "sub-carol", "preferred_username": "carol", "groups": ["chatters", "unknown"]}
ALICE = {"sub": "sub-alice", "preferred_username": "alice", "groups": ["chatters"]}
NOBODY = {"sub": "sub-nobody"}


@pytest.fixture(scope="module")
def provider_url():
    with openid_provider(CAROL, ALICE, NOBODY) as url:
        yield url


@pytest.fixture
def settings(provider_url):
    return {
        "CHATSVC_OIDC__ISSUER": provider_url,
        "CHATSVC_OIDC__CLIENT_ID": "chatsvc-page",
        "CHATSVC_OIDC__CLIENT_SECRET": "a client secret",
        "CHATSVC_OIDC__REDIRECT_URL": "http://localhost/oidc/callback",
        "CHATSVC_OIDC__ROLES": '{"chatters": "user"}',
        "CHATSVC_OIDC__API_AUDIENCE": "chatsvc-api",
    }


@pytest.fixture
def app(make_app, settings):
    return make_app(with_model=False, **settings)


@pytest.fixture
def client(app):
    return app.test_client()


def at_the_provider(url, sub="", *, deny=False):
    """What a person does there; returns the address the browser is sent back to."""
    form = {"action": "deny"} if deny else {"sub": sub}
    answer = httpx.post(url, data=form, follow_redirects=False, timeout=10)
    assert answer.status_code == 302, answer.text
    return answer.headers["Location"]


def log_in(client, sub="sub-carol"):
    there = client.get("/oidc/login").headers["Location"]
    back = urlsplit(at_the_provider(there, sub))
    return client.get(f"{back.path}?{back.query}")


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def test_a_person_logs_in_and_the_page_gets_its_tokens_once(app, client):
    answer = log_in(client)
    assert (answer.status_code, answer.headers["Location"]) == (302, "/#oidc")
    tokens = client.post("/oidc/tokens")
    assert set(tokens.json) == {"access_token", "refresh_token", "token_type", "expires_in"}
    me = client.get("/me", headers=bearer(tokens.json["access_token"])).json
    assert (me["principal"], me["roles"]) == ("carol", ["user"])
    assert running_in(app).guard.accounts.get("carol").source == "oidc"
    assert client.post("/oidc/tokens").status_code == 401
    assert client.post("/refresh", headers=bearer(tokens.json["refresh_token"])).status_code == 200


def test_the_browser_is_sent_away_with_pkce_state_and_nonce(client, provider_url):
    answer = client.get("/oidc/login")
    url = urlsplit(answer.headers["Location"])
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    assert f"{url.scheme}://{url.netloc}" == provider_url
    assert query["code_challenge_method"] == "S256"
    assert len(query["code_challenge"]) == 43
    assert query["response_type"] == "code"
    assert {"state", "nonce"} <= set(query)
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie


def test_the_verifier_fits_the_challenge(provider_url):
    url, flow = OidcProvider(OidcOptions(provider_url, "page", "http://localhost/oidc/callback")).start()
    digest = hashlib.sha256(flow.verifier.encode()).digest()
    assert parse_qs(urlsplit(url).query)["code_challenge"] == [base64.urlsafe_b64encode(digest).rstrip(b"=").decode()]


def test_both_steps_are_audited(app, client):
    log_in(client)
    client.post("/oidc/tokens")
    directory = running_in(app).settings.audit_directory
    text = b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())
    assert b'"auth.oidc"' in text
    assert b'"auth.login"' in text


CHANGED_ANSWERS = [
    (lambda query: {**query, "state": "another"}, "state mismatch: the answer belongs to another login"),
    (lambda query: {**query, "code": "another"}, "the provider refuses the code"),
    (lambda query: {"state": query["state"], "error": ["access_denied", "<b>no</b>"]}, "has no valid code"),
    (lambda query: {"state": query["state"], "error": "<b>server_error</b>"}, "has no code"),
    (lambda query: {"code": query["code"]}, "state mismatch: the answer belongs to another login"),
    (lambda query: {}, "state mismatch: the answer belongs to another login"),
]


def is_turned_away(answer, code="refused"):
    """Back at the page, with a code that the page knows and nothing that the provider sent."""
    return (answer.status_code, answer.headers["Location"]) == (302, f"/#oidc-{code}")


def denials(app):
    """What the audit log says of logins that the provider did not finish."""
    directory = running_in(app).settings.audit_directory
    lines = [line for path in directory.glob("*.jsonl") for line in path.read_bytes().splitlines()]
    found = [json.loads(line) for line in lines if b'"auth.oidc"' in line]
    return [record["reason"] for record in found if record["outcome"] == "denied"]


@pytest.mark.slow
def test_an_answer_that_is_not_to_this_login_is_refused(app, client, wait_until):
    for change, reason in CHANGED_ANSWERS:
        back = urlsplit(at_the_provider(client.get("/oidc/login").headers["Location"], "sub-carol"))
        query = {name: values[0] for name, values in parse_qs(back.query).items()}
        assert is_turned_away(client.get("/oidc/callback", query_string=change(query)))
        assert client.post("/oidc/tokens").status_code == 401
        wait_until(lambda reason=reason: any(reason in each for each in denials(app)))


def test_who_says_no_at_the_provider_is_back_at_the_login_and_the_log_knows(app, client, wait_until):
    there = client.get("/oidc/login").headers["Location"]
    back = urlsplit(at_the_provider(there, deny=True))
    assert "access_denied" in back.query
    assert is_turned_away(client.get(f"{back.path}?{back.query}"), "denied")
    assert client.post("/oidc/tokens").status_code == 401
    state = parse_qs(urlsplit(there).query)["state"][0]
    answer = client.get("/oidc/callback", query_string={"error": "access_denied", "state": state, "code": "c"})
    assert is_turned_away(answer, "denied")
    wait_until(lambda: denials(app) == ["the provider says access_denied"])
    assert is_turned_away(app.test_client().get(f"{back.path}?{back.query}"))  # not on its way to anywhere


def test_each_code_has_its_sentence_on_the_page(client):
    page = client.get("/assets/chat.js").text
    texts = client.get("/assets/texts.js").text
    known = dict(re.findall(r'"#oidc-(\w+)": "(\w+)"', page))
    assert set(known) == {"denied", "refused"}
    assert all(texts.count(f"{key}: ") == 2 for key in known.values())  # in both languages


def test_an_answer_in_another_browser_is_refused(app, client):
    back = urlsplit(at_the_provider(client.get("/oidc/login").headers["Location"], "sub-carol"))
    assert is_turned_away(app.test_client().get(f"{back.path}?{back.query}"))


def test_a_forged_cookie_is_refused(client):
    client.set_cookie("chatsvc-oidc-login", "eyJhY2NvdW50X2lkIjoiYWRtaW4ifQ.aaaa.bbbb")
    assert client.post("/oidc/tokens").status_code == 401


def test_a_local_account_is_not_opened_by_a_name_at_the_provider(client):
    assert is_turned_away(log_in(client, "sub-alice"))
    assert client.post("/oidc/tokens").status_code == 401


def test_a_disabled_account_stays_out_and_its_tools_too(app, client, provider_url):
    log_in(client)
    tool = api_token(provider_url)
    assert client.get("/me", headers=bearer(tool)).status_code == 200
    running_in(app).guard.accounts.set_disabled("carol", disabled=True)
    assert client.get("/me", headers=bearer(tool)).status_code == 401
    assert is_turned_away(log_in(client))


def test_who_has_no_name_there_is_nobody_here(client):
    assert is_turned_away(log_in(client, "sub-nobody"))


def api_token(provider_url, client_id="chatsvc-api", sub="sub-carol"):
    """A signed token of the provider's whose audience is our API; this provider's ID tokens are its only JWTs."""
    other = OidcProvider(OidcOptions(provider_url, client_id, "http://localhost/back", "a client secret"))
    url, flow = other.start()
    code = parse_qs(urlsplit(at_the_provider(url, sub)).query)["code"][0]
    with other._client() as session:
        return session.fetch_token(other._endpoint("token_endpoint"), code=code, code_verifier=flow.verifier)[
            "id_token"
        ]


def test_a_tool_comes_in_with_the_providers_token(app, client, provider_url):
    token = api_token(provider_url)
    me = client.get("/me", headers=bearer(token)).json
    assert (me["principal"], me["roles"], me["session"]) == ("carol", ["user"], None)
    assert client.post("/logout", headers=bearer(token)).status_code == 403
    assert client.post("/refresh", headers=bearer(token)).status_code == 401
    gate = running_in(app).gate
    with app.test_request_context():
        principal = gate.authenticate(Credentials((f"Bearer {token}",)), ANY_PRINCIPAL)
    assert not gate.is_revoked(principal)
    running_in(app).guard.accounts.set_disabled("carol", disabled=True)
    assert gate.is_revoked(principal)


def test_an_id_token_for_the_page_is_no_access_token(client, provider_url):
    assert client.get("/me", headers=bearer(api_token(provider_url, "chatsvc-page"))).status_code == 401
    assert client.get("/me", headers=bearer(api_token(provider_url, "somebody-else"))).status_code == 401


def forged(header, claims, key):
    return jwt.encode(header, claims, key, algorithms=[header["alg"]])


def test_tokens_that_somebody_else_signed_are_refused(client, provider_url):
    now = int(time.time())
    claims = {"iss": provider_url, "aud": "chatsvc-api", "sub": "x", "iat": now, "exp": now + 60}
    published = httpx.get(f"{provider_url}/jwks").json()["keys"][0]
    keys = {
        "RS256": RSAKey.generate_key(2048),
        "Ed25519": OKPKey.generate_key("Ed25519"),
        "HS256": OctKey.import_key(json.dumps(published).encode()),
    }
    for kind, key in keys.items():
        for named in ({}, {"kid": published.get("kid", "1")}, {"kid": "unknown"}):
            token = forged({"alg": kind, **named}, {**claims, "preferred_username": "admin"}, key)
            assert client.get("/me", headers=bearer(token)).status_code == 401


def test_a_token_of_another_issuer_asks_nobody_for_keys(provider_url, monkeypatch):
    provider = OidcProvider(
        OidcOptions(provider_url, "page", "http://localhost/back", "a client secret", api_audience="api")
    )
    monkeypatch.setattr(provider, "_get", lambda url: pytest.fail("asked"))
    body = base64.urlsafe_b64encode(json.dumps({"iss": "http://elsewhere"}).encode()).rstrip(b"=").decode()
    deep = base64.urlsafe_b64encode(b"[" * 6000).rstrip(b"=").decode()
    array = base64.urlsafe_b64encode(b"[]").rstrip(b"=").decode()
    for token in (f"a.{body}.c", "a.b", "a.b.c", f"a.{deep}.c", f"a.{array}.c", "a" * 20_000):
        with pytest.raises(AuthenticationFailed):
            provider.check_bearer(token)
    with pytest.raises(AuthenticationFailed):
        provider._checked("a" * 20_000, "api")


def test_without_an_audience_no_bearer_is_taken(provider_url):
    provider = OidcProvider(OidcOptions(provider_url, "page", "http://localhost/back", "a client secret"))
    with pytest.raises(AuthenticationFailed):
        provider.check_bearer(api_token(provider_url))


def test_an_expired_token_is_refused(provider_url):
    token = api_token(provider_url)
    options = OidcOptions(provider_url, "page", "http://localhost/back", "a client secret", api_audience="chatsvc-api")
    assert OidcProvider(options).check_bearer(token).name == "carol"
    with pytest.raises(AuthenticationFailed):
        OidcProvider(options, clock=lambda: time.time() + 7200).check_bearer(token)


def test_a_nonce_of_another_login_is_refused(provider_url):
    provider = OidcProvider(OidcOptions(provider_url, "page", "http://localhost/back", "a client secret"))
    url, flow = provider.start()
    code = parse_qs(urlsplit(at_the_provider(url, "sub-carol")).query)["code"][0]
    with pytest.raises(AuthenticationFailed) as caught:
        provider.finish(code, Flow(flow.state, "another nonce", flow.verifier))
    assert "another login" in caught.value.reason


def test_a_provider_without_an_id_token_names_nobody(provider_url, monkeypatch):
    provider = OidcProvider(
        OidcOptions(provider_url, "page", "http://localhost/back", "a client secret", scopes=["profile"])
    )
    url, flow = provider.start()
    code = parse_qs(urlsplit(at_the_provider(url, "sub-carol")).query)["code"][0]
    with pytest.raises(AuthenticationFailed):
        provider.finish(code, flow)


def test_a_provider_that_is_down_is_503_for_its_people_and_nobody_else(make_app, settings, login):
    issuer = f"http://127.0.0.1:{free_port()}"
    client = make_app(with_model=False, **{**settings, "CHATSVC_OIDC__ISSUER": issuer}).test_client()
    assert client.get("/oidc/login").status_code == 503
    headers = login("alice", at=client)
    assert client.get("/me", headers=headers).status_code == 200
    assert client.get("/me", headers=bearer("a.b.c")).status_code == 401


def test_a_provider_that_goes_away_in_the_middle_is_an_outage(provider_url, monkeypatch):
    provider = OidcProvider(OidcOptions(provider_url, "page", "http://localhost/back", "a client secret"))
    _, flow = provider.start()
    monkeypatch.setitem(provider._metadata, "token_endpoint", f"http://127.0.0.1:{free_port()}/token")
    with pytest.raises(StoreUnavailable):
        provider.finish("code", flow)


@pytest.mark.parametrize("answer", [{"issuer": "http://another"}, [], {"issuer": None}])
def test_metadata_of_another_issuer_is_not_believed(provider_url, monkeypatch, answer):
    provider = OidcProvider(OidcOptions(provider_url, "page", "http://localhost/back", "a client secret"))

    class Answer:
        def raise_for_status(self):
            pass

        def json(self):
            return answer

    monkeypatch.setattr("chatsvc.guard.providers.oidc.requests.get", lambda *_, **__: Answer())
    with pytest.raises(StoreUnavailable):
        provider.start()


def test_metadata_without_an_endpoint_is_an_outage(provider_url, monkeypatch):
    provider = OidcProvider(OidcOptions(provider_url, "page", "http://localhost/back", "a client secret"))
    monkeypatch.setattr(provider, "_get", lambda url: {"issuer": provider_url})
    with pytest.raises(StoreUnavailable):
        provider.start()


def test_configurations_that_would_be_holes_do_not_start(provider_url):
    with pytest.raises(OperatorError, match="https"):
        OidcProvider(OidcOptions("http://id.example.org", "page", "http://localhost/back"))
    with pytest.raises(OperatorError, match="client_id"):
        OidcProvider(OidcOptions(provider_url, "page", "http://localhost/back", "a client secret", api_audience="page"))


def test_the_secret_is_in_no_representation():
    assert "hush" not in repr(OidcOptions("http://localhost", "page", "", client_secret="hush"))


def test_without_a_provider_there_is_no_such_route(bare_client):
    assert bare_client.get("/oidc/login").status_code == 404
