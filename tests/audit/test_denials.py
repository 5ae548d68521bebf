"""Refusals of unknown callers cost little, and the first of each kind is on record."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chatsvc.audit.facts import Facts, Result
from chatsvc.audit.log import AuditLog
from chatsvc.audit.options import AuditOptions
from chatsvc.audit.write.denials import Denials
from tests.audit.logs import last_segment
from tests.audit.test_log import found

LOGIN = Facts("r", "auth.login", address="10.0.0.9", attempted_name="root")


def failing(number: int, address: str = "10.0.0.9") -> Facts:
    return replace(LOGIN, request_id=f"r{number}", address=address, attempted_name=f"name {number}")


def day_of(denials: Denials, per_second: int = 1, address: str = "10.0.0.9") -> tuple[int, int, int]:
    """A day's flood: records of single failures, records of sums, failures that these speak of."""
    singles = num_sums = counted = 0
    for second in range(86_400):
        for number in range(per_second):
            singles += denials.is_news(failing(second + number, address), "failed", float(second), can_write=True)
        sums = denials.take_sums(float(second))
        num_sums, counted = num_sums + len(sums), counted + sum(each[2] for each in sums)
    return singles, num_sums, counted + sum(each[2] for each in denials.take_sums(float("inf")))


def test_a_days_flood_with_fresh_names_costs_few_records_and_none_is_forgotten() -> None:
    singles, num_sums, counted = day_of(Denials(10, 64, 5))
    assert singles + counted == 86_400
    assert singles <= 5 * 60  # with 1.5 KB each, half a megabyte instead of 130
    assert num_sums <= 60


def test_windows_are_short_again_after_a_quiet_time() -> None:
    denials = Denials(10, 64, 1)
    now = 0.0
    for _ in range(8):  # a flood: 10 s, 20 s, … 1280 s
        for _ in range(3):
            denials.is_news(LOGIN, "failed", now, can_write=True)
        now += 1280
        assert denials.take_sums(now)
    now += 5000
    for _ in range(2):
        denials.is_news(LOGIN, "failed", now, can_write=True)
    assert denials.take_sums(now + 9) == []
    ((_, _, count),) = denials.take_sums(now + 10)
    assert count == 1


def test_each_address_has_its_own_first_failures() -> None:
    denials = Denials(10, 64, 2)
    for number in range(100):
        denials.is_news(failing(number), "failed", 0, can_write=True)
    assert denials.is_spent(failing(1000), "failed")
    other = failing(0, "10.0.0.10")
    assert not denials.is_spent(other, "failed")
    assert denials.is_news(other, "failed", 0, can_write=True)


def test_the_addresses_of_one_ipv6_customer_are_one() -> None:
    denials = Denials(10, 64, 2)
    news = [denials.is_news(failing(0, f"2001:db8:1:2::{n:x}"), "failed", 0, can_write=True) for n in range(1, 50)]
    assert news == [True, True] + [False] * 47
    assert not denials.is_spent(failing(0, "2001:db8:1:3::1"), "failed")
    ((facts, _, count),) = denials.take_sums(10)
    assert (facts.address, count) == ("2001:db8:1:2::/64", 47)


def test_more_addresses_than_are_told_apart_are_counted_together_and_alarm() -> None:
    denials = Denials(10, 3, 1)
    for number in range(500):
        denials.is_news(failing(number, f"10.0.{number // 250}.{number % 250}"), "failed", 0, can_write=True)
    assert denials.is_spent(failing(0, "10.9.9.9"), "failed")
    assert denials.alarms(0) == ["auth.login is refused very often, from many addresses"]
    ((facts, _, count),) = denials.take_sums(10)
    assert (facts, count) == (Facts("", "auth.login"), 497)
    assert len(denials.alarms(60)) == 1
    assert denials.alarms(5000) == []


@pytest.mark.parametrize("is_recorded", [True, False])
def test_what_has_a_record_already_is_among_the_first_few(is_recorded: bool) -> None:
    denials = Denials(10, 64, 3)
    for number in range(5):
        if is_recorded:
            denials.recorded(failing(number), "failed", 0)
        else:
            denials.is_news(failing(number), "failed", 0, can_write=True)
    assert denials.is_spent(LOGIN, "failed")
    assert denials.take_sums(10) == ([] if is_recorded else [(replace(LOGIN, request_id="", attempted_name=None), "failed", 2)])  # fmt: skip


def test_failures_that_are_only_counted_become_one_record_with_an_alarm(options: AuditOptions) -> None:
    log = AuditLog.open(replace(options, denial_window_s=600))
    for number in range(5):
        log.begin(failing(number)).end(Result("denied", 401))
        assert not log.is_failing_often(failing(number))
        log.count_failure(failing(number), is_recorded=True)
    size = last_segment(options).stat().st_size
    assert log.is_failing_often(LOGIN)
    for number in range(10_000):
        log.count_failure(failing(number), is_recorded=False)
    assert log.alarms() == ["auth.login is refused very often, from 10.0.0.9"]
    log.close()
    *_, summed = found(options, action="auth.login")
    assert (summed["suppressed"], summed["address"], summed["reason"]) == (10_000, "10.0.0.9", "login_failed")
    assert "attempted_name_hmac" not in summed
    assert last_segment(options).stat().st_size - size < 5000


def test_a_failure_of_an_address_that_was_let_off_meanwhile_has_a_record(options: AuditOptions) -> None:
    log = AuditLog.open(options)
    log.count_failure(failing(1), is_recorded=False)
    log.close()
    (single,) = found(options, action="auth.login")
    assert (single["outcome"], single["reason"]) == ("denied", "login_failed")
    assert single["attempted_name_hmac"]
