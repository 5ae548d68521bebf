"""Any input as a credential is refused; none causes an internal error."""

from __future__ import annotations

import base64
import json
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatsvc.errors import AuthenticationFailed
from chatsvc.guard.credentials.api_keys import NewKey
from chatsvc.guard.gate import Credentials
from chatsvc.guard.principal import ANY_PRINCIPAL, REFRESH_TOKEN
from tests.tokens import signed_pair

# The examples share fixtures, which they only read.
QUICK = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
HEADER_TEXT = st.text(st.characters(max_codepoint=255), max_size=300)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def refused(gate, credentials):
    for requirement in (ANY_PRINCIPAL, REFRESH_TOKEN):
        with pytest.raises(AuthenticationFailed):
            gate.authenticate(credentials, requirement)


def b64(value):
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


@QUICK
@given(st.lists(HEADER_TEXT, max_size=2), st.lists(HEADER_TEXT, max_size=2))
def test_any_text_is_refused(gate, authorization, api_key):
    refused(gate, Credentials(tuple(authorization), tuple(api_key)))


@QUICK
@given(HEADER_TEXT)
def test_any_bearer_is_refused(gate, token):
    refused(gate, Credentials((f"Bearer {token}",)))
    refused(gate, Credentials(api_key=(f"csk_{token}",)))


@QUICK
@given(JSON_VALUES, JSON_VALUES, st.binary(max_size=64))
def test_any_json_in_the_shape_of_a_token_is_refused(gate, header, claims, signature):
    end = base64.urlsafe_b64encode(signature).rstrip(b"=").decode()
    refused(gate, Credentials((f"Bearer {b64(header)}.{b64(claims)}.{end}",)))


@QUICK
@given(st.data())
def test_a_valid_credential_with_any_character_changed_is_refused(gate, guard, ada, data):
    pair = signed_pair(guard.sessions.start(ada["id"], "127.0.0.1")[1])
    key = guard.api_keys.create(NewKey("ada", "ci", ["chat"]))[0]
    text = data.draw(st.sampled_from([pair.access_token, key]))
    place = data.draw(st.integers(0, len(text) - 1))
    changed = text[:place] + data.draw(st.characters(max_codepoint=255)) + text[place + 1 :]
    # The last base64url character may have unused bits, so a change of it may give the same token.
    with suppress(AuthenticationFailed):
        principal = gate.authenticate(Credentials((f"Bearer {changed}",)), ANY_PRINCIPAL)
        assert changed == text or (principal.name == "ada" and place == len(text) - 1)
