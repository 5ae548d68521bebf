"""What Flask-JWT-Extended signs is what the guard filled in, and passes the guard's check."""

from __future__ import annotations

import time

import jwt
import pytest
from flask import Flask

from chatsvc.guard.credentials.keyring import KeyRing
from chatsvc.guard.credentials.tokens import Claims, TokenOptions, TokenPair, Tokens
from chatsvc.http.wire.tokens import install, sign, signed_pair


@pytest.fixture(params=["HS256", "EdDSA"])
def tokens(request, tmp_path):
    tokens = Tokens(KeyRing(tmp_path / "keys", request.param, keep_s=1000), TokenOptions())
    app = Flask("test")
    install(app, tokens.ring.algorithm)
    with app.app_context():
        yield tokens


def claims():
    now = int(time.time())
    return Claims("account", "session", "id", now, now + 600)


@pytest.mark.parametrize("kind", ["access", "refresh"])
def test_a_signed_token_holds_what_was_filled_in_and_is_accepted(tokens, kind):
    unsigned = tokens.unsigned(kind, claims())
    text = sign(unsigned)
    assert jwt.get_unverified_header(text) == unsigned.header
    assert jwt.decode(text, options={"verify_signature": False}) == {**unsigned.payload, "fresh": False}
    assert tokens.check(text, kind) == claims()


def test_the_same_contents_give_the_same_text(tokens):
    unsigned = tokens.unsigned("refresh", claims())
    assert sign(unsigned) == sign(unsigned)


def test_a_pair_is_answered_as_rfc_6749_says(tokens):
    answer = signed_pair(TokenPair(tokens.unsigned("access", claims()), tokens.unsigned("refresh", claims()), 600))
    assert (
        tokens.check(answer["access_token"], "access") == tokens.check(answer["refresh_token"], "refresh") == claims()
    )
    assert answer["token_type"] == "Bearer"
    assert answer["expires_in"] == 600
