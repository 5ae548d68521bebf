"""Every rule for tokens, and every published attack on one: all are refused in the same way."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chatsvc.errors import AuthenticationFailed
from chatsvc.guard.credentials.keyring import KeyRing
from chatsvc.guard.credentials.tokens import Claims, TokenOptions, Tokens, unverified_sid
from tests.tokens import sign

OPTIONS = TokenOptions()


@pytest.fixture(params=["HS256", "EdDSA"])
def tokens(request, tmp_path, clock):
    return Tokens(KeyRing(tmp_path / "keys", request.param, keep_s=100_000, clock=clock), OPTIONS, clock=clock)


def good_claims(kind="access", **changes):
    now = int(time.time())
    lifetime_s = 600 if kind == "access" else 86_400
    claims = {
        "iss": "chatsvc",
        "sub": "account",
        "aud": "chatsvc",
        "iat": now,
        "nbf": now,
        "exp": now + lifetime_s,
        "jti": "token-id",
        "sid": "session-id",
        "type": kind,
    }
    claims.update(changes)
    return {name: value for name, value in claims.items() if value is not None}


def forged(tokens, claims, header=None, key=None):
    """A token with any claims and headers, signed by the real key unless another is given."""
    current = tokens.ring.current()
    full = {"alg": tokens.ring.algorithm, "kid": current.kid, "typ": "at+jwt", **(header or {})}
    full = {name: value for name, value in full.items() if value is not None}
    signing_input = f"{b64(json.dumps(full))}.{b64(claims if isinstance(claims, str) else json.dumps(claims))}"
    private = current.private if key is None else key
    if isinstance(private, Ed25519PrivateKey):
        signature = private.sign(signing_input.encode())
    else:
        signature = hmac.new(private, signing_input.encode(), hashlib.sha256).digest()
    return f"{signing_input}.{b64(signature)}"


def b64(data):
    data = data.encode() if isinstance(data, str) else data
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def refused(tokens, token, kind="access"):
    started_at = time.monotonic()
    with pytest.raises(AuthenticationFailed) as caught:
        tokens.check(token, kind)
    assert caught.value.message == AuthenticationFailed.message
    assert caught.value.code == AuthenticationFailed.code
    assert time.monotonic() - started_at < 5
    return caught.value.reason


@pytest.mark.parametrize("kind", ["access", "refresh"])
def test_a_token_that_was_signed_is_accepted_and_gives_its_claims(tokens, kind):
    now = int(time.time())
    claims = Claims("account", "session", "id", now, now + 600)
    assert tokens.check(sign(tokens, kind, claims), kind) == claims


def test_the_same_claims_give_the_same_text(tokens):
    now = int(time.time())
    claims = Claims("account", "session", "id", now, now + 600)
    assert sign(tokens, "refresh", claims) == sign(tokens, "refresh", claims)


def test_the_header_says_what_the_design_says(tokens):
    now = int(time.time())
    header = jwt.get_unverified_header(sign(tokens, "access", Claims("a", "s", "j", now, now + 60)))
    assert header == {"alg": tokens.ring.algorithm, "kid": tokens.ring.current().kid, "typ": "at+jwt"}


def test_a_token_forged_with_the_real_key_is_the_same_as_ours(tokens):
    assert tokens.check(forged(tokens, good_claims()), "access").sub == "account"


def test_one_kind_is_never_the_other(tokens):
    now = int(time.time())
    claims = Claims("account", "session", "id", now, now + 600)
    refused(tokens, sign(tokens, "refresh", claims), "access")
    refused(tokens, sign(tokens, "access", claims), "refresh")
    refused(tokens, forged(tokens, good_claims(), {"typ": "rt+jwt"}), "refresh")
    refused(tokens, forged(tokens, good_claims(type="refresh")), "access")


@pytest.mark.parametrize("claim", ["iss", "sub", "aud", "iat", "nbf", "exp", "jti", "sid", "type"])
def test_every_claim_is_required(tokens, claim):
    refused(tokens, forged(tokens, good_claims(**{claim: None})))


@pytest.mark.parametrize("claim", ["iss", "sub", "aud", "jti", "sid", "type"])
@pytest.mark.parametrize("value", [1, True, ["chatsvc"], {"a": 1}, ""])
def test_text_claims_are_text(tokens, claim, value):
    refused(tokens, forged(tokens, good_claims(**{claim: value})))


@pytest.mark.parametrize("claim", ["iat", "nbf", "exp"])
@pytest.mark.parametrize("value", ["1", 1.5, True, False, [1], {"a": 1}, -1, 0, 10**30, -(10**30), 1e300])
def test_time_claims_are_integers_within_bounds(tokens, claim, value):
    if claim == "nbf" and value in (-1, 0, -(10**30)) and type(value) is int:
        value = 10**12
    refused(tokens, forged(tokens, good_claims(**{claim: value})))


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("claim", ["iat", "nbf", "exp"])
def test_times_that_are_no_numbers_are_refused(tokens, claim, text):
    claims = json.dumps(good_claims(**{claim: "HERE"})).replace('"HERE"', text)
    refused(tokens, forged(tokens, claims))


@pytest.mark.parametrize("changes", [{"iss": "other"}, {"aud": "other"}, {"type": "id"}, {"type": "Access"}])
def test_texts_of_others_are_refused(tokens, changes):
    refused(tokens, forged(tokens, good_claims(**changes)))


@pytest.mark.parametrize("claim", ["sub", "jti", "sid"])
def test_an_absurdly_long_id_is_refused(tokens, claim):
    assert refused(tokens, forged(tokens, good_claims(**{claim: "x" * 65}))) == "an id is too long"


def test_leeway_is_thirty_seconds_on_either_side(tokens):
    now = int(time.time())
    assert tokens.check(forged(tokens, good_claims(exp=now - 20, iat=now - 100, nbf=now - 100)), "access")
    refused(tokens, forged(tokens, good_claims(exp=now - 31, iat=now - 100, nbf=now - 100)))
    assert tokens.check(forged(tokens, good_claims(nbf=now + 20)), "access")
    refused(tokens, forged(tokens, good_claims(nbf=now + 60)))
    refused(tokens, forged(tokens, good_claims(iat=now + 60, exp=now + 120)))


def test_a_token_expires_by_the_clock_that_was_passed_in(tokens, clock):
    now = int(clock())
    token = sign(tokens, "access", Claims("a", "s", "j", now, now + 60))
    clock.advance(120)
    assert refused(tokens, token) == "expired"


def test_a_lifetime_beyond_the_configured_one_is_refused(tokens):
    now = int(time.time())
    assert refused(tokens, forged(tokens, good_claims(exp=now + 601))) == "lifetime out of bounds"
    refused(tokens, forged(tokens, good_claims(exp=now, iat=now)))


ALGORITHMS = [
    "none",
    "None",
    "NONE",
    "nOnE",
    "",
    "HS384",
    "HS512",
    "hs256",
    "RS256",
    "ES256",
    "PS256",
    "eddsa",
    "Ed25519",
]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_another_algorithm_is_refused_signed_or_not(tokens, algorithm):
    refused(tokens, forged(tokens, good_claims(), {"alg": algorithm}))
    head, body, _ = forged(tokens, good_claims(), {"alg": algorithm}).split(".")
    refused(tokens, f"{head}.{body}.")
    refused(tokens, f"{head}.{body}")


@pytest.mark.parametrize("value", [None, 1, True, ["HS256"], {"a": 1}])
def test_an_algorithm_that_is_no_text_is_refused(tokens, value):
    refused(tokens, forged(tokens, good_claims(), {"alg": value}))


def test_a_public_key_as_a_shared_secret_is_refused(tmp_path, clock):
    ring = KeyRing(tmp_path / "keys", "EdDSA", keep_s=1000, clock=clock)
    tokens = Tokens(ring, OPTIONS, clock=clock)
    public = ring.jwks()["keys"][0]["x"]
    for secret in (public.encode(), base64.urlsafe_b64decode(public + "=")):
        refused(tokens, forged(tokens, good_claims(), {"alg": "HS256"}, secret))
        refused(tokens, forged(tokens, good_claims(), key=secret))


def test_a_stripped_empty_or_changed_signature_is_refused(tokens):
    head, body, signature = forged(tokens, good_claims()).split(".")
    changed = ("B" if signature[0] == "A" else "A") + signature[1:]
    for ending in ("", ".", f".{changed}", f".{signature[:-4]}", f".{signature}AAAA", f".{b64(bytes(32))}"):
        refused(tokens, f"{head}.{body}{ending}")


def test_a_changed_payload_is_refused(tokens):
    head, _, signature = forged(tokens, good_claims()).split(".")
    refused(tokens, f"{head}.{b64(json.dumps(good_claims(sub='admin')))}.{signature}")


def test_another_key_of_the_same_name_is_refused(tokens):
    other = Ed25519PrivateKey.generate() if tokens.ring.algorithm == "EdDSA" else b"x" * 32
    refused(tokens, forged(tokens, good_claims(), key=other))
    refused(tokens, forged(tokens, good_claims(), key=b""))


@pytest.mark.parametrize(
    "header",
    [
        {"jwk": {"kty": "oct", "k": "AAAA"}},
        {"jku": "http://127.0.0.1/keys"},
        {"x5u": "http://127.0.0.1/cert"},
        {"x5c": ["AAAA"]},
        {"crit": ["exp"]},
        {"crit": []},
        {"b64": False, "crit": ["b64"]},
        {"cty": "JWT"},
        {"zip": "DEF"},
        {"enc": "A256GCM"},
        {"nonce": "x"},
    ],
)
def test_header_parameters_that_we_do_not_write_are_refused(tokens, header):
    refused(tokens, forged(tokens, good_claims(), header))


@pytest.mark.parametrize(
    "kid",
    [
        None,
        "",
        "unknown",
        "../../../../dev/null",
        "/etc/passwd",
        "x' UNION SELECT 'key' --",
        "| sleep 10",
        "\0",
        "key\n",
        1,
        True,
        ["a"],
        {"a": 1},
    ],
)
def test_a_kid_that_is_not_ours_is_refused(tokens, kid):
    refused(tokens, forged(tokens, good_claims(), {"kid": kid}))
    refused(tokens, forged(tokens, good_claims(), {"kid": kid}, b""))


@pytest.mark.parametrize(
    "typ", [None, "", "JWT", "jwt", "AT+JWT", "application/at+jwt", "dpop+jwt", "secevent+jwt", 1, ["at+jwt"]]
)
def test_a_typ_that_is_not_ours_is_refused(tokens, typ):
    refused(tokens, forged(tokens, good_claims(), {"typ": typ}))


def test_padding_whitespace_and_any_other_character_is_refused(tokens):
    token = forged(tokens, good_claims())
    head, body, signature = token.split(".")
    for bad in (
        token + "=",
        token + "==",
        token + "\n",
        token + " ",
        " " + token,
        token + ".",
        "." + token,
        f"{head}=.{body}.{signature}",
        f"{head}.{body}=.{signature}",
        f"{head}..{signature}",
        f".{body}.{signature}",
        f"{head}.{body}.{signature}.{signature}",
        f"{head}.{body}.{signature[:-1]}+",
        f"{head}.{body}.{signature[:-1]}/",
        f"{head}.{body}.{signature[:-1]}é",
        f"{head}.{body}.{signature[:-1]}\0",
        token.replace(".", "%2e"),
    ):
        refused(tokens, bad)


def test_a_megabyte_of_token_is_refused_unread(tokens):
    refused(tokens, "a" * 1_000_000)
    refused(tokens, forged(tokens, good_claims(extra="x" * 1_000_000)))
    assert refused(tokens, f"{b64('{}')}.{'a' * 1_000_000}.a") == "malformed token"


def test_deeply_nested_json_is_refused(tokens):
    header, body = "[" * 100_000, "[" * 1_000
    refused(tokens, f"{b64(header)}.{b64(body)}.AAAA")
    refused(tokens, f"{b64('[' * 2_900)}.{b64('{}')}.AAAA")
    refused(tokens, forged(tokens, "[" * 2_000))
    refused(tokens, forged(tokens, '{"a":' * 500))


@pytest.mark.parametrize("header", ["", "{}", "[]", "null", '"at+jwt"', "1", "{", "\xff", '{"alg":'])
def test_a_header_that_is_no_object_of_ours_is_refused(tokens, header):
    refused(tokens, f"{b64(header.encode('latin-1')) or 'A'}.{b64(json.dumps(good_claims()))}.AAAA")


@pytest.mark.parametrize("payload", ["[]", "null", '"a"', "1", "{", "\xff\xfe", "{}"])
def test_a_payload_that_is_no_object_of_ours_is_refused(tokens, payload):
    refused(tokens, forged(tokens, payload))


@pytest.mark.parametrize(
    "token", ["", ".", "..", "a", "a.b", "a.b.c", "a.b.c.d.e", "Bearer", "null", "undefined", "csk_a_b", "é.é.é", "💥"]
)
def test_what_is_no_token_at_all_is_refused(tokens, token):
    refused(tokens, token)


def test_tokens_signed_before_a_rotation_stay_valid(tokens):
    now = int(time.time())
    token = sign(tokens, "access", Claims("a", "s", "j", now, now + 60))
    tokens.ring.rotate()
    assert tokens.check(token, "access").jti == "j"


def test_the_key_that_the_header_names_is_looked_up_once(tokens, monkeypatch):
    token = forged(tokens, good_claims())
    answers = iter([tokens.ring.current()])  # a second look-up would raise StopIteration
    monkeypatch.setattr(tokens.ring, "find", lambda kid: next(answers))
    assert tokens.check(token, "access").sub == "account"


def test_an_operator_can_tell_the_session_of_a_token_that_was_found(tokens):
    assert unverified_sid(forged(tokens, good_claims())) == "session-id"
    assert unverified_sid(forged(tokens, good_claims(sid=7))) is None
    assert unverified_sid("nonsense") is None
