"""Sessions: refreshed by compare-and-swap, ended at once, and when a spent refresh token is used again."""

from __future__ import annotations

import threading
from dataclasses import replace

import jwt
import pytest
from sqlalchemy import func, select

from chatsvc.errors import AuthenticationFailed, NotFound
from chatsvc.guard.credentials.sessions import RefreshTokenReused
from chatsvc.guard.credentials.tokens import Claims
from chatsvc.store.tables import RefreshToken, Session
from tests.tokens import signed_pair


def claims_of(guard, pair):
    return guard.tokens.check(pair.refresh_token, "refresh")


def test_a_login_gives_both_tokens_of_one_family(guard, pair):
    access = guard.tokens.check(pair.access_token, "access")
    refresh = claims_of(guard, pair)
    assert access.sid == refresh.sid
    assert access.jti != refresh.jti
    assert pair.expires_in == access.exp - access.iat == 600


def test_an_account_disabled_or_removed_meanwhile_gets_no_session(guard, ada):
    guard.accounts.set_disabled("ada", disabled=True)
    for account_id in (ada["id"], "removed"):
        with pytest.raises(AuthenticationFailed):
            guard.sessions.start(account_id, "127.0.0.1")


def test_a_refresh_gives_the_next_pair(guard, pair):
    following = signed_pair(guard.sessions.refresh(claims_of(guard, pair), "127.0.0.1"))
    assert following.refresh_token != pair.refresh_token
    assert claims_of(guard, following).sid == claims_of(guard, pair).sid


def test_a_retry_from_the_same_address_within_ten_seconds_gets_the_same_successor(guard, pair, clock):
    first = signed_pair(guard.sessions.refresh(claims_of(guard, pair), "127.0.0.1"))
    clock.advance(9)
    again = signed_pair(guard.sessions.refresh(claims_of(guard, pair), "127.0.0.1"))
    assert again.refresh_token == first.refresh_token
    assert again == first


def test_a_clock_that_was_ahead_does_not_lengthen_the_grace(guard, pair, clock):
    claims = claims_of(guard, pair)
    clock.advance(100_000)  # sessions do not check the token's own expiry
    guard.sessions.refresh(claims, "127.0.0.1")
    clock.advance(-100_000)
    with pytest.raises(RefreshTokenReused):
        guard.sessions.refresh(claims, "127.0.0.1")


def test_tokens_from_the_future_are_refused_until_then(guard, ada, clock):
    clock.advance(126_144_000)
    ahead = signed_pair(guard.sessions.start(ada["id"], "127.0.0.1")[1])
    clock.advance(-126_144_000)
    for token, kind in ((ahead.access_token, "access"), (ahead.refresh_token, "refresh")):
        with pytest.raises(AuthenticationFailed):
            guard.tokens.check(token, kind)
    now = signed_pair(guard.sessions.start(ada["id"], "127.0.0.1")[1])
    assert guard.tokens.check(now.access_token, "access")


def test_a_second_use_from_another_address_ends_the_family(guard, pair):
    guard.sessions.refresh(claims_of(guard, pair), "127.0.0.1")
    with pytest.raises(RefreshTokenReused) as caught:
        guard.sessions.refresh(claims_of(guard, pair), "127.0.0.2")
    assert guard.sessions.state(caught.value.sid).revoked_at is not None


def test_a_second_use_after_the_grace_ends_the_family_and_the_successor_with_it(guard, pair, clock):
    following = signed_pair(guard.sessions.refresh(claims_of(guard, pair), "127.0.0.1"))
    clock.advance(11)
    with pytest.raises(RefreshTokenReused):
        guard.sessions.refresh(claims_of(guard, pair), "127.0.0.1")
    with pytest.raises(AuthenticationFailed, match="valid access token"):
        guard.sessions.refresh(claims_of(guard, following), "127.0.0.1")


def test_a_hundred_parallel_refreshes_have_one_successor(guard, pair):
    claims, results = claims_of(guard, pair), []

    def spend():
        results.append(signed_pair(guard.sessions.refresh(claims, "127.0.0.1")).refresh_token)

    threads = [threading.Thread(target=spend) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 100
    assert len(set(results)) == 1
    with guard.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(RefreshToken)) == 2


def test_a_refresh_token_of_no_session_is_refused(guard, pair, ada):
    claims = claims_of(guard, pair)
    for wrong in (replace(claims, sid="other"), replace(claims, sub="other")):
        with pytest.raises(AuthenticationFailed):
            guard.sessions.refresh(wrong, "127.0.0.1")
    with pytest.raises(RefreshTokenReused):
        guard.sessions.refresh(replace(claims, jti="other"), "127.0.0.1")


def test_a_family_ends_after_its_absolute_lifetime_however_often_it_is_refreshed(guard, pair, clock):
    for _ in range(7):
        clock.advance(86_000)
        pair = signed_pair(guard.sessions.refresh(guard_claims(guard, pair), "127.0.0.1"))
    assert pair.expires_in <= 600
    clock.advance(86_400)
    with pytest.raises(AuthenticationFailed):
        guard.sessions.refresh(guard_claims(guard, pair), "127.0.0.1")


def guard_claims(guard, pair):
    """The claims, unverified: the token is not valid at the system clock's time."""
    raw = jwt.decode(pair.refresh_token, options={"verify_signature": False})
    return Claims(raw["sub"], raw["sid"], raw["jti"], raw["iat"], raw["exp"])


def test_the_last_tokens_of_a_family_do_not_outlive_it(guard, ada, clock):
    pair = signed_pair(guard.sessions.start(ada["id"], "127.0.0.1")[1])
    for seconds in (*[86_000] * 7, 604_800 - 7 * 86_000 - 100):
        clock.advance(seconds)
        pair = signed_pair(guard.sessions.refresh(guard_claims(guard, pair), "127.0.0.1"))
    assert pair.expires_in <= 100
    assert guard_claims(guard, pair).exp - clock() <= 100


def test_an_ended_session_is_over_and_cannot_be_ended_again(guard, pair):
    claims = claims_of(guard, pair)
    change = guard.sessions.end(claims.sid, "logout")
    assert change.before["account"] == "ada"
    with pytest.raises(AuthenticationFailed):
        guard.sessions.refresh(claims, "127.0.0.1")
    with pytest.raises(NotFound):
        guard.sessions.end(claims.sid, "logout")


def test_who_is_in_is_listed_and_all_of_an_account_end_together(guard, ada):
    guard.accounts.add("bob", "correct horse battery", ["user"])
    bob = guard.accounts.get("bob")
    for account_id in (ada["id"], ada["id"], bob.id):
        guard.sessions.start(account_id, "127.0.0.1")
    assert len(guard.sessions.list_sessions()) == 3
    assert len(guard.sessions.list_sessions("ada")) == 2
    assert guard.sessions.end_all_of(ada["id"], "command") == 2
    assert [session.account for session in guard.sessions.list_sessions()] == ["bob"]


def test_the_session_of_a_token_is_found_by_its_jti(guard, pair):
    claims = claims_of(guard, pair)
    assert guard.sessions.sid_of(claims.jti) == claims.sid
    assert guard.sessions.sid_of(guard.tokens.check(pair.access_token, "access").jti) == claims.sid
    assert guard.sessions.sid_of("unknown") == "unknown"


def test_purging_forgets_sessions_that_are_over_and_no_other(guard, pair, clock, ada):
    clock.advance(604_800 + 60)
    alive, _ = guard.sessions.start(ada["id"], "127.0.0.1")
    guard.sessions.purge()
    with guard.database.reading() as session:
        assert session.scalars(select(Session.sid)).all() == [alive]
        assert session.scalar(select(func.count()).select_from(RefreshToken)) == 1
