"""The ring of signing keys: made on first use, rotated at run time, deleted when no token can need them."""

from __future__ import annotations

import os
import threading

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from chatsvc.errors import OperatorError
from chatsvc.guard.credentials.keyring import KeyRing, read_or_make_secret

KEEP_S = 1000


@pytest.fixture(params=["HS256", "EdDSA"])
def algorithm(request):
    return request.param


def a_ring(tmp_path, clock, algorithm="HS256"):
    return KeyRing(tmp_path / "keys", algorithm, keep_s=KEEP_S, clock=clock)


def test_the_first_key_is_made_and_belongs_to_one_account_of_the_machine(tmp_path, clock, algorithm):
    ring = a_ring(tmp_path, clock, algorithm)
    assert ring.find(ring.current().kid) == ring.current()
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "keys").glob("signing-*")} == {0o600}


def test_a_second_ring_on_the_same_directory_has_the_same_key(tmp_path, clock, algorithm):
    assert a_ring(tmp_path, clock, algorithm).current().kid == a_ring(tmp_path, clock, algorithm).current().kid


def test_after_a_rotation_the_new_key_signs_and_the_old_one_still_verifies(tmp_path, clock, algorithm):
    ring = a_ring(tmp_path, clock, algorithm)
    old = ring.current()
    kid = ring.rotate()
    assert ring.current().kid == kid != old.kid
    assert ring.find(old.kid) == old


def test_another_process_sees_a_rotation_within_a_second_and_an_unknown_kid_at_once(tmp_path, clock):
    here, there = a_ring(tmp_path, clock), a_ring(tmp_path, clock)
    kid = here.rotate()
    assert there.current().kid != kid
    clock.advance(0.1)
    assert there.find(kid) is not None
    assert there.current().kid == kid


def test_a_rotation_within_the_same_second_or_with_the_clock_gone_back_still_signs_with_the_newest(tmp_path, clock):
    ring = a_ring(tmp_path, clock)
    clock.advance(-3600)
    kids = [ring.rotate() for _ in range(5)]
    assert kids == sorted(kids)
    assert ring.current().kid == kids[-1]


def test_a_key_is_dropped_once_no_token_can_need_it(tmp_path, clock):
    ring = a_ring(tmp_path, clock)
    first = ring.current().kid
    second = ring.rotate()
    clock.advance(KEEP_S - 1)
    third = ring.rotate()
    assert ring.find(first) is not None
    clock.advance(10)
    ring.rotate()
    assert ring.find(first) is None
    assert ring.find(second) is not None
    assert ring.find(third) is not None


def test_a_clock_that_was_years_ahead_hides_no_rotation_and_keeps_no_old_key(tmp_path, clock):
    here, there = a_ring(tmp_path, clock), a_ring(tmp_path, clock)
    first = here.current().kid
    clock.advance(126_144_000)
    there.find("another")  # the last scan is now in the future
    ahead = here.rotate()
    in_the_future = clock()
    os.utime(tmp_path / "keys" / f"signing-{ahead}.hs256", (in_the_future, in_the_future))
    clock.advance(-126_144_000)
    assert there.current().kid == ahead
    newest = here.rotate()
    clock.advance(1)
    assert there.current().kid == here.current().kid == newest
    assert there.find(first) is None
    assert there.find(ahead) is not None  # replaced a second ago
    clock.advance(KEEP_S + 10)
    here.rotate()
    assert here.find(ahead) is None


def test_what_was_removed_is_forgotten_at_once_also_after_the_clock_was_set_back(tmp_path, clock):
    here, there = a_ring(tmp_path, clock), a_ring(tmp_path, clock)
    old = here.current().kid
    here.rotate()
    (tmp_path / "keys" / f"signing-{old}.hs256").unlink()
    clock.advance(-86_400)
    assert there.find(old) is None


def test_a_kid_from_the_wire_never_becomes_a_path(tmp_path, clock):
    ring = a_ring(tmp_path, clock)
    for kid in ("../../etc/passwd", "/dev/null", "", "*", "' OR 1=1 --", "\0", ring.current().kid + "/.."):
        assert ring.find(kid) is None


def test_an_emptied_directory_does_not_end_every_session(tmp_path, clock):
    ring = a_ring(tmp_path, clock)
    kid = ring.current().kid
    for path in (tmp_path / "keys").glob("signing-*"):
        path.unlink()
    clock.advance(5)
    assert ring.current().kid == kid


def test_files_of_the_other_algorithm_are_not_looked_at(tmp_path, clock):
    secret = a_ring(tmp_path, clock, "HS256")
    public = a_ring(tmp_path, clock, "EdDSA")
    assert public.find(secret.current().kid) is None


def test_processes_that_start_together_make_one_key(tmp_path, clock):
    rings = []
    threads = [threading.Thread(target=lambda: rings.append(a_ring(tmp_path, clock))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({ring.current().kid for ring in rings}) == 1


def test_the_public_keys_are_published_and_secret_ones_are_not(tmp_path, clock):
    assert a_ring(tmp_path, clock, "HS256").jwks() == {"keys": []}
    ring = a_ring(tmp_path, clock, "EdDSA")
    ring.rotate()
    keys = ring.jwks()["keys"]
    assert {key["kid"] for key in keys} >= {ring.current().kid}
    assert all(set(key) == {"kty", "crv", "use", "alg", "kid", "x"} for key in keys)


def a_foreign_key():
    return generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("signing-0000000001-aa.hs256", b"short"),
        ("signing-notanumber.hs256", b"x" * 32),
        ("signing-0000000001-aa.eddsa", b"not a key"),
        ("signing-0000000001-aa.eddsa", a_foreign_key()),
    ],
)
def test_a_broken_key_file_is_named_and_prevents_the_start(tmp_path, clock, name, content):
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / name).write_bytes(content)
    with pytest.raises(OperatorError, match=name):
        a_ring(tmp_path, clock, "HS256" if name.endswith("hs256") else "EdDSA")


def test_a_broken_key_file_that_appears_at_run_time_is_ignored(tmp_path, clock):
    ring = a_ring(tmp_path, clock)
    kid = ring.current().kid
    (tmp_path / "keys" / "signing-9999999999-aa.hs256").write_bytes(b"short")
    clock.advance(5)
    assert ring.current().kid == kid
    assert ring.find("9999999999-aa") is None


def test_a_secret_is_made_once(tmp_path):
    path = tmp_path / "keys" / "throttle.key"
    assert read_or_make_secret(path) == read_or_make_secret(path)
    assert path.stat().st_mode & 0o777 == 0o600
