"""The gate's six steps, one by one, and what an admitted request holds."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from chatsvc.errors import (
    AuthenticationFailed,
    LimitExceeded,
    Overloaded,
    PermissionRefused,
    StoreUnavailable,
)
from chatsvc.guard.accounts.external import BearerAccount
from chatsvc.guard.credentials.api_keys import NewKey
from chatsvc.guard.gate import Credentials, Gate
from chatsvc.guard.limits.admission import duration_text
from chatsvc.guard.limits.queue import Queue
from chatsvc.guard.principal import ANY_PRINCIPAL, PUBLIC, REFRESH_TOKEN, Principal, scope
from tests.tokens import sign, signed_pair

PASSWORD = "correct horse battery"
CHAT = scope("chat")


def bearer(token, scheme="Bearer"):
    return Credentials(authorization=(f"{scheme} {token}",))


@pytest.fixture
def key(guard, ada):
    return guard.api_keys.create(NewKey("ada", "ci", ["chat"], requests_per_minute=2, tokens_per_day=50))[0]


@pytest.fixture
def principal(gate, pair):
    return gate.authenticate(bearer(pair.access_token), CHAT)


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("127.0.0.1", [], "127.0.0.1"),
        ("10.1.2.3", [], "10.1.2.3"),
        ("192.0.2.1", ["127.0.0.9"], "127.0.0.9"),
        ("", ["10.0.0.1"], "10.0.0.1"),
    ],
)
def test_1_an_address_on_the_list_comes_in(gate, peer, forwarded, expected):
    assert gate.admit_address(peer, forwarded) == ip_address(expected)


@pytest.mark.parametrize(
    ("peer", "forwarded"),
    [
        ("203.0.113.9", []),
        ("203.0.113.9", ["127.0.0.1"]),
        ("192.0.2.1", ["203.0.113.9"]),
        ("192.0.2.1", ['"']),
        ("192.0.2.1", []),
        ("", []),
        ("::1", []),
    ],
)
def test_1_any_other_does_not(gate, peer, forwarded):
    with pytest.raises(PermissionRefused):
        gate.admit_address(peer, forwarded)


def test_2_a_public_route_looks_at_no_credentials(gate):
    assert gate.authenticate(bearer("nonsense"), PUBLIC) is None


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
def test_2_a_valid_token_gives_its_account_whatever_the_schemes_case(gate, pair, ada, scheme):
    principal = gate.authenticate(bearer(pair.access_token, scheme), CHAT)
    assert (principal.account_id, principal.name, principal.scopes) == (ada["id"], "ada", {"chat"})
    assert principal.limits.tokens_per_day == 1000


def test_2_a_key_comes_as_bearer_or_in_its_own_header(gate, key):
    for credentials in (bearer(key), Credentials(api_key=(key,))):
        principal = gate.authenticate(credentials, CHAT)
        assert principal.key_id == key.split("_")[1]
        assert principal.sid is None


@pytest.mark.parametrize(
    "credentials",
    [
        lambda token, key: Credentials(),
        lambda token, key: Credentials(authorization=("",)),
        lambda token, key: Credentials(authorization=(token,)),
        lambda token, key: Credentials(authorization=(f"Basic {token}",)),
        lambda token, key: Credentials(authorization=(f"Bearer{token}",)),
        lambda token, key: Credentials(authorization=(f"Bearer\t{token}",)),
        lambda token, key: Credentials(authorization=("Bearer",)),
        lambda token, key: Credentials(authorization=("Bearer ",)),
        lambda token, key: Credentials(authorization=(f"Bearer {token}, Bearer {token}",)),
        lambda token, key: Credentials(authorization=(f"Bearer {token},Bearer {token}",)),
        lambda token, key: Credentials(authorization=(f"Bearer {token}",) * 2),
        lambda token, key: Credentials(authorization=(f"Bearer {token}",), api_key=(key,)),
        lambda token, key: Credentials(api_key=(key, key)),
        lambda token, key: Credentials(api_key=(f"{key},{key}",)),
        lambda token, key: Credentials(api_key=(token,)),
        lambda token, key: Credentials(api_key=("",)),
        lambda token, key: Credentials(api_key=(f"Bearer {key}",)),
    ],
)
def test_2_anything_but_exactly_one_valid_credential_is_refused(gate, pair, key, credentials):
    with pytest.raises(AuthenticationFailed) as caught:
        gate.authenticate(credentials(pair.access_token, key), ANY_PRINCIPAL)
    assert caught.value.message == AuthenticationFailed.message


def test_2_only_a_refresh_token_refreshes_and_it_does_nothing_else(gate, pair, key):
    assert gate.authenticate(bearer(pair.refresh_token), REFRESH_TOKEN).sid
    for token in (pair.access_token, key):
        with pytest.raises(AuthenticationFailed):
            gate.authenticate(bearer(token), REFRESH_TOKEN)
    with pytest.raises(AuthenticationFailed):
        gate.authenticate(bearer(pair.refresh_token), ANY_PRINCIPAL)


def end_session(guard, principal):
    guard.sessions.end(principal.sid, "logout")


def disable(guard, _principal):
    guard.accounts.set_disabled("ada", disabled=True)


def change_password(guard, _principal):
    guard.accounts.set_password("ada", "another good password")


def remove(guard, _principal):
    guard.accounts.remove("ada")


@pytest.mark.parametrize("act", [end_session, disable, change_password, remove])
def test_2_what_ends_a_session_ends_its_tokens_and_running_streams_at_once(gate, guard, pair, principal, act):
    admission = gate.admit(principal)
    assert not admission.is_revoked()
    act(guard, principal)
    assert admission.is_revoked()
    for token, requirement in ((pair.access_token, ANY_PRINCIPAL), (pair.refresh_token, REFRESH_TOKEN)):
        with pytest.raises(AuthenticationFailed):
            gate.authenticate(bearer(token), requirement)
    admission.release()


def test_2_a_token_for_somebody_elses_session_is_refused(gate, guard, pair):
    guard.accounts.add("bob", PASSWORD, ["admin"])
    claims = guard.tokens.check(pair.access_token, "access")
    other = guard.sessions.start(guard.accounts.get("bob").id, "127.0.0.1")[0]
    for forged in (replace(claims, sid=other), replace(claims, sid="unknown")):
        with pytest.raises(AuthenticationFailed):
            gate.authenticate(bearer(sign(guard.tokens, "access", forged)), ANY_PRINCIPAL)


def test_2_a_store_that_cannot_say_is_503_never_not_revoked(gate, guard, pair, key, monkeypatch):
    def down(*_):
        raise StoreUnavailable

    monkeypatch.setattr(guard.database, "first", down)
    for token in (pair.access_token, key):
        with pytest.raises(StoreUnavailable):
            gate.authenticate(bearer(token), ANY_PRINCIPAL)
    with pytest.raises(AuthenticationFailed):
        gate.authenticate(bearer("a.b.c"), ANY_PRINCIPAL)  # an invalid token is 401 even while the store is down


class Issuer:
    """Accepts any token, for one account."""

    def __init__(self, account_id):
        self.account = BearerAccount(account_id, 2**40)

    def check_bearer(self, token):
        return self.account


def test_2_an_account_that_another_issuer_vouches_for_must_still_be_there_and_enabled(guard, options, ada):
    gate = guard.gate(options, Queue(2, 4, 3), lambda *_: None, issuer=Issuer(ada["id"]))
    admission = gate.admit(gate.authenticate(bearer("their.own.token"), CHAT))
    assert admission.principal.name == "ada"
    assert not admission.is_revoked()
    guard.accounts.set_disabled("ada", disabled=True)
    assert admission.is_revoked()
    admission.release()
    with pytest.raises(AuthenticationFailed):
        gate.authenticate(bearer("their.own.token"), CHAT)
    guard.accounts.remove("ada")
    with pytest.raises(AuthenticationFailed):
        gate.authenticate(bearer("their.own.token"), CHAT)


def test_3_a_principal_without_the_scope_is_refused(gate, guard, pair):
    for name in ("metrics", "admin", "audit"):
        with pytest.raises(PermissionRefused):
            gate.authenticate(bearer(pair.access_token), scope(name))
    guard.accounts.set_roles("ada", [])
    with pytest.raises(PermissionRefused):
        gate.authenticate(bearer(pair.access_token), CHAT)
    assert gate.authenticate(bearer(pair.access_token), ANY_PRINCIPAL).scopes == frozenset()


def test_5_requests_a_minute_are_limited_and_the_refusal_says_all_about_it(gate, guard, ada):
    guard.accounts.set_limits("ada", {"requests_per_minute": 3})
    pair = signed_pair(guard.sessions.start(ada["id"], "127.0.0.1")[1])
    principal = gate.authenticate(bearer(pair.access_token), CHAT)
    for _ in range(3):
        gate.admit(principal).release()
    with pytest.raises(LimitExceeded) as caught:
        gate.admit(principal)
    assert 0 < caught.value.retry_after_s <= 60
    assert caught.value.headers["x-ratelimit-limit-requests"] == "3"
    assert caught.value.headers["x-ratelimit-remaining-requests"] == "0"
    assert caught.value.headers["x-ratelimit-remaining-tokens"] == "1000"


def test_5_a_key_that_is_used_up_does_not_use_up_its_account(gate, key, principal):
    of_key = gate.authenticate(bearer(key), CHAT)
    for _ in range(2):
        gate.admit(of_key).release()
    for _ in range(10):
        with pytest.raises(LimitExceeded):
            gate.admit(of_key)
    admission = gate.admit(principal)
    assert admission.limits_headers()["x-ratelimit-remaining-requests"] == "97"
    admission.release()


def test_6_tokens_are_reserved_settled_and_limited(gate, principal):
    admission = gate.admit(principal)
    admission.charge(600)
    assert admission.limits_headers()["x-ratelimit-remaining-tokens"] == "400"
    other = gate.admit(principal)
    with pytest.raises(LimitExceeded) as caught:
        other.charge(401)
    assert caught.value.headers["x-ratelimit-remaining-tokens"] == "400"
    other.release()
    admission.settle(1000)
    admission.settle(0)
    admission.release()
    with pytest.raises(LimitExceeded, match="tokens of today"):
        gate.admit(principal)


def test_6_what_was_charged_and_never_used_comes_back_at_release(gate, principal):
    admission = gate.admit(principal)
    admission.charge(600)
    admission.release()
    admission.release()
    assert gate.standing(principal)[1]["tokens_per_day"] == 1000


def test_6_a_key_has_its_own_quota(gate, key):
    admission = gate.admit(gate.authenticate(bearer(key), CHAT))
    with pytest.raises(LimitExceeded):
        admission.charge(51)
    admission.charge(50)
    admission.release()


def test_7_one_principal_may_hold_so_many_tickets(gate, principal):
    held = [gate.admit(principal) for _ in range(3)]
    with pytest.raises(LimitExceeded) as caught:
        gate.admit(principal)
    assert "x-ratelimit-limit-requests" in caught.value.headers
    assert gate.standing(principal)[1]["concurrent_requests"] == 0
    held.pop().release()
    gate.admit(principal).release()
    for admission in held:
        admission.release()


def test_7_a_key_may_hold_fewer_tickets_than_its_account(gate, guard, ada, principal):
    new = NewKey("ada", "one at a time", ["chat"], max_concurrent=1)
    of_key = gate.authenticate(bearer(guard.api_keys.create(new)[0]), CHAT)
    assert gate.standing(of_key)[0]["concurrent_requests"] == 1
    held = gate.admit(of_key)
    with pytest.raises(LimitExceeded, match="1 requests running or waiting, which is the key's limit") as caught:
        gate.admit(of_key)
    assert (caught.value.code, gate.standing(of_key)[1]["concurrent_requests"]) == ("concurrency_limit_exceeded", 0)
    others = [gate.admit(principal), gate.admit(principal)]  # the account's own requests do not count for the key
    held.release()
    others.append(gate.admit(principal))
    with pytest.raises(LimitExceeded, match="3 requests running or waiting, which is your limit"):
        gate.admit(of_key)  # but the key's count for the account
    assert gate.standing(of_key) == gate.standing(principal)
    for admission in others:
        admission.release()
    gate.admit(of_key).release()


def test_7_a_full_queue_is_overloaded_for_everybody(gate, guard, principal):
    held = []
    for name in ("bob", "eve", "joe"):
        guard.accounts.add(name, PASSWORD, ["user"])
        pair = signed_pair(guard.sessions.start(guard.accounts.get(name).id, "127.0.0.1")[1])
        other = gate.authenticate(bearer(pair.access_token), CHAT)
        held += [gate.admit(other), gate.admit(other)]
    with pytest.raises(Overloaded):
        gate.admit(principal)
    for admission in held:
        admission.release()


def test_7_slots_are_given_in_turn_and_positions_are_known(gate, principal):
    held = [gate.admit(principal) for _ in range(3)]
    assert held[0].wait_turn(10, 1)
    assert held[1].wait_turn(10, 1)
    assert not held[2].wait_turn(10, 0.01)
    assert held[2].position() == 1
    assert held[2].estimate_s() is None
    held[0].release()
    assert held[2].wait_turn(10, 1)
    for admission in held:
        admission.release()


def test_roles_and_accounts_have_limits_of_their_own(gate, guard, pair):
    guard.accounts.set_roles("ada", ["user", "operator"])
    assert gate.authenticate(bearer(pair.access_token), CHAT).limits.tokens_per_day == 5000
    guard.accounts.set_limits("ada", {"tokens_per_day": 7})
    assert gate.authenticate(bearer(pair.access_token), CHAT).limits.tokens_per_day == 7


def test_a_principal_can_see_where_it_stands(gate, principal):
    limits, remaining = gate.standing(principal)
    assert limits == {"requests_per_minute": 100, "tokens_per_day": 1000, "concurrent_requests": 3}
    assert remaining == limits
    assert gate.standing(Principal("nobody", "nobody", (), frozenset()))[0] == limits


def test_a_running_stream_learns_that_its_key_was_revoked(gate, guard, key):
    admission = gate.admit(gate.authenticate(bearer(key), CHAT))
    assert not admission.is_revoked()
    guard.api_keys.revoke(key.split("_")[1])
    assert admission.is_revoked()
    admission.release()


def test_a_running_stream_survives_a_blink_of_the_store_and_no_more(gate, guard, principal, monkeypatch):
    admission = gate.admit(principal)

    def down(*_):
        raise StoreUnavailable

    monkeypatch.setattr(guard.database, "first", down)
    assert not admission.is_revoked()
    admission._verified_at -= 1.1
    with pytest.raises(StoreUnavailable):
        admission.is_revoked()
    monkeypatch.undo()
    assert not admission.is_revoked()
    admission.release()


def test_old_rows_are_purged_once_a_minute(guard, options, clock, monkeypatch):
    purged = []
    for part in (guard.sessions, guard.throttle, guard.quotas):
        monkeypatch.setattr(part, "purge", lambda part=part: purged.append(part))
    parts = guard.gate(options, Queue(1, 1, 1), lambda *_: None)._parts
    gate = Gate(parts, options.gate, clock=clock)
    for seconds, expected in ((0, 0), (61, 3), (10, 3), (60, 6)):
        clock.advance(seconds)
        gate.housekeep()
        assert len(purged) == expected


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (-5, "0s"), (0.2, "1s"), (59.1, "1m0s"), (360, "6m0s"), (42_363, "11h46m3s")]
)
def test_durations_are_written_like_openais(seconds, text):
    assert duration_text(seconds) == text
