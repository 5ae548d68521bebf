"""kill -9 at any moment: every acknowledged record is there, nothing stays open, the log verifies."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time as real_time
from pathlib import Path

import pytest

from chatsvc.audit.log import AuditLog
from chatsvc.audit.options import AuditOptions
from chatsvc.audit.verify.log import verify_log
from chatsvc.audit.verify.verdict import CLEAN, TORN_TAIL
from tests.audit.logs import home_trust
from tests.audit.test_log import found, records_of

WRITER = Path(__file__).with_name("crash_writer.py")


def killed_after(home: Path, name: str, seconds: float) -> set[str]:
    """What a writer acknowledged before it was killed."""
    # A killed process writes no coverage, so it does not measure any.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")}
    command = [sys.executable, WRITER, home, name]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        first = process.stdout.readline()
        real_time.sleep(seconds)
        process.kill()
        rest = process.stdout.read()
    return {line for line in (first + rest).splitlines(keepends=True) if line.endswith("\n")}


@pytest.mark.parametrize("rounds", [8, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_a_killed_writer_loses_nothing_that_it_acknowledged(tmp_path, rounds):
    options = AuditOptions(tmp_path / "audit", tmp_path / "keys", lock_timeout_s=5)
    dice = random.Random(4711)
    acknowledged = set()
    for number in range(rounds):
        acknowledged |= killed_after(tmp_path, f"k{number}", dice.uniform(0, 0.2))
        if number % 8 == 0:  # the log grows, and with it what a verification takes
            assert verify_log(options.directory, home_trust(options)).exit_code in (CLEAN, TORN_TAIL)
    AuditLog.open(options).close()
    assert verify_log(options.directory, home_trust(options)).exit_code == CLEAN
    begun = {each["seq"]: each["request_id"] for each in found(options, stage="begin")}
    ended = [each["begin"] for each in records_of(options) if each["stage"] == "end"]
    assert {line.strip() for line in acknowledged} <= set(begun.values())
    assert sorted(ended) == sorted(begun)  # each exactly once: no orphan stays open
    assert found(options, stage="end", outcome="aborted")
