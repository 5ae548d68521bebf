"""Logging in, refreshing, logging out and changing passwords, over HTTP and into the audit log."""

from __future__ import annotations

import base64
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jwt
import pytest

from chatsvc.app import running_in
from chatsvc.errors import AuditUnavailable, StoreUnavailable
from chatsvc.guard.assembly import assemble
from chatsvc.guard.credentials.api_keys import NewKey
from chatsvc.guard.outbox import put_into_outbox
from chatsvc.wiring import guard_options

ALICE = {"username": "alice", "password": "alice's long password"}
WRONG = {"username": "alice", "password": "not alice's password"}


@pytest.fixture
def client(bare_client):
    return bare_client


@pytest.fixture
def running(bare_app):
    return running_in(bare_app)


@pytest.fixture
def tokens(client):
    answer = client.post("/login", json=ALICE)
    assert answer.status_code == 200
    return answer.json


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def records(running):
    """Every record of the audit log."""
    directory = running.settings.audit_directory
    return [
        json.loads(line)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
        for line in path.read_bytes().split(b"\n")
        if line.startswith(b"{")
    ]


def actions(running, action):
    return [record for record in records(running) if record.get("action") == action]


def is_401(answer):
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}
    assert answer.json["error"]["type"] == "authentication_error"
    return answer.json


def test_login_gives_the_four_keys_of_the_contract(tokens):
    assert set(tokens) == {"access_token", "refresh_token", "token_type", "expires_in"}
    assert tokens["token_type"] == "Bearer"
    assert tokens["expires_in"] == 600
    assert jwt.get_unverified_header(tokens["access_token"])["typ"] == "at+jwt"
    assert jwt.get_unverified_header(tokens["refresh_token"])["typ"] == "rt+jwt"
    claims = jwt.decode(tokens["access_token"], options={"verify_signature": False})
    assert {"iss", "sub", "aud", "iat", "nbf", "exp", "jti", "sid", "type"} <= set(claims)


def test_login_is_not_cached(client):
    assert client.post("/login", json=ALICE).headers["Cache-Control"] == "no-store"


WRONG_LOGINS = [
    WRONG,
    {"username": "nobody", "password": "alice's long password"},
    {"username": "", "password": ""},
    {"username": "alice", "password": ""},
    {"username": "x" * 5000, "password": "x" * 5000},
    {"username": "' OR '1'='1", "password": "' OR '1'='1"},
]


def test_every_wrong_login_is_the_same_401(client):
    expected = is_401(client.post("/login", json={"username": "somebody", "password": "else"}))
    for body in WRONG_LOGINS:
        assert is_401(client.post("/login", json=body)) == expected


MALFORMED_LOGINS = [
    ({"username": "alice"}, "password"),
    ({"password": "x"}, "username"),
    ({"username": 1, "password": "x"}, "username"),
    ({"username": "alice", "password": ["x"]}, "password"),
    ({"username": "alice", "password": None}, "password"),
    ({**ALICE, "otp": "1"}, "otp"),
    ({"username": "ali\0ce", "password": "x"}, "username"),
    ({"username": "alice", "password": "\ud800"}, "password"),
]


def test_a_malformed_login_is_400_and_names_the_field(client):
    for body, param in MALFORMED_LOGINS:
        answer = client.post("/login", data=json.dumps(body), content_type="application/json")
        assert answer.status_code == 400
        assert answer.json["error"]["param"] == param


def test_a_login_is_recorded_before_and_after_without_the_password_or_the_name(client, running):
    client.post("/login", json=ALICE)
    client.post("/login", json=WRONG)
    outcomes = [(record["stage"], record["outcome"]) for record in actions(running, "auth.login")]
    assert ("end", "allowed") in outcomes
    assert ("end", "denied") in outcomes
    assert len([1 for stage, _ in outcomes if stage == "begin"]) == 2
    text = json.dumps(records(running))
    assert "long password" not in text
    assert "not alice's" not in text


def test_without_the_audit_log_nobody_comes_in_and_denials_stay_denials(client, running, monkeypatch):
    def dead(*_):
        raise AuditUnavailable

    monkeypatch.setattr(running.audit, "begin", dead)
    for body in (ALICE, WRONG):
        assert client.post("/login", json=body).status_code == 503
    is_401(client.get("/me", headers=bearer("a.b.c")))


def test_a_guesser_has_to_wait_and_is_told_how_long(client):
    for _ in range(5):
        is_401(client.post("/login", json=WRONG))
    answer = client.post("/login", json=ALICE)
    assert answer.status_code == 429
    assert 1 <= int(answer.headers["Retry-After"]) <= 120
    assert answer.json["error"]["code"] == "login_throttled"


def test_the_owner_comes_in_from_another_address_while_a_guesser_waits(client):
    for _ in range(6):
        client.post("/login", json=WRONG)
    elsewhere = {"REMOTE_ADDR": "127.0.0.99"}
    assert client.post("/login", json=ALICE, environ_overrides=elsewhere).status_code == 200


def test_me_says_who_is_calling_and_what_is_left(client, tokens):
    me = client.get("/me", headers=bearer(tokens["access_token"])).json
    assert me["principal"] == "alice"
    assert me["roles"] == ["user"]
    assert me["scopes"] == ["chat"]
    assert me["limits"]["tokens_per_day"] == me["remaining"]["tokens_per_day"] == 5_000_000


def test_refresh_gives_the_next_pair_and_the_old_one_is_spent(client, tokens):
    answer = client.post("/refresh", headers=bearer(tokens["refresh_token"]))
    assert answer.status_code == 200
    assert set(answer.json) == set(tokens)
    assert answer.json["refresh_token"] != tokens["refresh_token"]
    for access in (tokens["access_token"], answer.json["access_token"]):
        assert client.get("/me", headers=bearer(access)).status_code == 200


def test_a_refresh_token_used_second_from_elsewhere_ends_the_family_and_is_recorded(client, tokens, running):
    following = client.post("/refresh", headers=bearer(tokens["refresh_token"])).json
    stolen = client.post(
        "/refresh", headers=bearer(tokens["refresh_token"]), environ_overrides={"REMOTE_ADDR": "127.0.0.66"}
    )
    is_401(stolen)
    is_401(client.get("/me", headers=bearer(following["access_token"])))
    is_401(client.post("/refresh", headers=bearer(following["refresh_token"])))
    denied = [record for record in actions(running, "auth.refresh") if record["outcome"] == "denied"]
    assert len(denied) == 1
    assert "reused" in json.dumps(denied)


def test_a_hundred_parallel_refreshes_have_one_successor(bare_app, tokens):
    def spend(_):
        return bare_app.test_client().post("/refresh", headers=bearer(tokens["refresh_token"])).json

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(spend, range(100)))
    assert len({answer["refresh_token"] for answer in answers}) == 1


def test_the_two_kinds_of_token_are_not_taken_for_each_other(client, tokens):
    is_401(client.get("/me", headers=bearer(tokens["refresh_token"])))
    is_401(client.post("/refresh", headers=bearer(tokens["access_token"])))
    is_401(client.post("/logout", headers=bearer(tokens["refresh_token"])))


def test_logout_ends_the_whole_family_at_once(client, tokens, running):
    assert client.post("/logout", headers=bearer(tokens["access_token"])).status_code == 204
    for method, path, token in (
        ("GET", "/me", tokens["access_token"]),
        ("POST", "/logout", tokens["access_token"]),
        ("POST", "/refresh", tokens["refresh_token"]),
    ):
        is_401(client.open(path, method=method, headers=bearer(token)))
    assert [record["outcome"] for record in actions(running, "auth.logout") if record["stage"] == "end"] == ["allowed"]


def test_a_new_password_ends_every_other_session(client, tokens):
    other = client.post("/login", json=ALICE).json
    body = {"current": ALICE["password"], "new": "an even longer password"}
    assert client.post("/password", json=body, headers=bearer(tokens["access_token"])).status_code == 204
    assert client.get("/me", headers=bearer(tokens["access_token"])).status_code == 200
    is_401(client.get("/me", headers=bearer(other["access_token"])))
    is_401(client.post("/refresh", headers=bearer(other["refresh_token"])))
    is_401(client.post("/login", json=ALICE))
    assert client.post("/login", json={"username": "alice", "password": body["new"]}).status_code == 200


def test_a_wrong_current_password_is_403_and_the_session_lives_on(client, tokens):
    body = {"current": "not the password at all", "new": "an even longer password"}
    answer = client.post("/password", json=body, headers=bearer(tokens["access_token"]))
    assert answer.status_code == 403
    assert client.get("/me", headers=bearer(tokens["access_token"])).status_code == 200


def test_a_new_password_that_breaks_the_rules_is_400(client, tokens):
    for new in ("short", "x" * 129, ""):
        body = {"current": ALICE["password"], "new": new}
        answer = client.post("/password", json=body, headers=bearer(tokens["access_token"]))
        assert answer.status_code == 400
        assert answer.json["error"]["param"] == "new"


def test_a_key_does_not_log_out_or_change_passwords(client, running):
    key = running.guard.api_keys.create(NewKey("alice", "ci", ["chat"]))[0]
    assert client.get("/me", headers={"X-Api-Key": key}).json["key"] == key.split("_")[1]
    assert client.post("/logout", headers=bearer(key)).status_code == 403
    body = {"current": ALICE["password"], "new": "an even longer password"}
    assert client.post("/password", json=body, headers=bearer(key)).status_code == 403
    is_401(client.post("/refresh", headers=bearer(key)))


def test_the_scheme_of_a_bearer_is_case_insensitive(client, tokens):
    for scheme in ("bearer", "BEARER", "Bearer "):
        assert client.get("/me", headers={"Authorization": f"{scheme} {tokens['access_token']}"}).status_code == 200


def test_every_bad_credential_is_one_401(client, tokens, running):
    access = tokens["access_token"]
    key = running.guard.api_keys.create(NewKey("alice", "ci", ["chat"]))[0]
    head, body, signature = access.split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none","typ":"at+jwt"}').rstrip(b"=").decode()
    bad = [
        [],
        [("Authorization", "")],
        [("Authorization", "Bearer")],
        [("Authorization", access)],
        [("Authorization", f"Basic {access}")],
        [("Authorization", f"Bearer {access}=")],
        [("Authorization", f"Bearer {access}.")],
        [("Authorization", f"Bearer {head}.{body}.")],
        [("Authorization", f"Bearer {none}.{body}.")],
        [("Authorization", f"Bearer {head}.{body}.{signature[::-1]}")],
        [("Authorization", f"Bearer {access}"), ("Authorization", f"Bearer {access}")],
        [("Authorization", f"Bearer {access}"), ("X-Api-Key", key)],
        [("X-Api-Key", access)],
        [("X-Api-Key", key + "x")],
        [("X-Api-Key", key), ("X-Api-Key", key)],
    ]
    bodies = {json.dumps(is_401(client.get("/me", headers=headers)), sort_keys=True) for headers in bad}
    assert len(bodies) == 1


def test_a_database_that_is_down_is_503_and_heals(client, tokens, running, monkeypatch):
    def down(*_):
        raise StoreUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(running.guard.database, "first", down)
        answer = client.get("/me", headers=bearer(tokens["access_token"]))
        assert answer.status_code == 503
        assert answer.headers["Retry-After"]
    assert client.get("/me", headers=bearer(tokens["access_token"])).status_code == 200


def test_rotating_the_signing_key_logs_nobody_out(client, tokens, running):
    running.guard.rotate_signing_key()
    assert client.get("/me", headers=bearer(tokens["access_token"])).status_code == 200
    following = client.post("/refresh", headers=bearer(tokens["refresh_token"])).json
    kids = {jwt.get_unverified_header(token)["kid"] for token in (tokens["access_token"], following["access_token"])}
    assert len(kids) == 2


def test_with_eddsa_others_can_verify_our_tokens_by_the_published_keys(make_app):
    client = make_app(with_model=False, CHATSVC_TOKENS__ALGORITHM="EdDSA").test_client()
    access = client.post("/login", json=ALICE).json["access_token"]
    published = jwt.PyJWKSet.from_dict(client.get("/.well-known/jwks.json").json)
    key = published[jwt.get_unverified_header(access)["kid"]]
    claims = jwt.decode(access, key, algorithms=["EdDSA"], audience="chatsvc", issuer="chatsvc")
    assert claims["type"] == "access"
    assert client.get("/me", headers=bearer(access)).status_code == 200


def test_secret_keys_are_not_published(client):
    assert client.get("/.well-known/jwks.json").json == {"keys": []}


def test_a_flood_of_failed_logins_costs_few_records_and_the_owner_still_comes_in(client, running):
    for number in range(12):
        assert client.post("/login", json=WRONG | {"username": f"fresh-{number}"}).status_code == 401
    single = actions(running, "auth.login")
    assert [each["stage"] for each in single] == ["begin", "end"] * 5
    assert len({each["attempted_name_hmac"] for each in single}) == 5
    assert client.post("/login", json=ALICE).status_code == 200
    begin, end = actions(running, "auth.login")[10:]
    assert (begin["stage"], end["outcome"], end["begin"]) == ("begin", "allowed", begin["seq"])
    running.audit.close()
    summed = actions(running, "auth.login")[-1]
    assert (summed["suppressed"], summed["address"], summed["outcome"]) == (7, "127.0.0.1", "denied")
    assert client.post("/login", json=WRONG).status_code == 503  # no log: nothing is looked at


def test_fifty_parallel_logins_all_come_in(bare_app):
    def log_in(_):
        return bare_app.test_client().post("/login", json=ALICE).status_code

    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(log_in, range(50))) == [200] * 50


def test_a_parallel_logout_that_comes_second_is_no_error(bare_app, tokens):
    barrier, statuses = threading.Barrier(8), []

    def log_out():
        client = bare_app.test_client()
        barrier.wait()
        statuses.append(client.post("/logout", headers=bearer(tokens["access_token"])).status_code)

    threads = [threading.Thread(target=log_out) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) <= {204, 401}
    assert 204 in statuses


def test_acts_by_command_reach_the_log_with_the_next_request(client, tokens, running):
    by_command = assemble(guard_options(running.settings), on_change=put_into_outbox("cli:root"))
    by_command.accounts.set_roles("bob", ["viewer"])
    by_command.close()
    deadline = time.monotonic() + 30
    while not actions(running, "admin.account.roles"):
        assert time.monotonic() < deadline
        client.get("/me", headers=bearer(tokens["access_token"]))
        time.sleep(0.1)
    (record,) = actions(running, "admin.account.roles")
    assert record["actor"] == "cli:root"
