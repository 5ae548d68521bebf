"""Fixtures of the audit log: real logs on a temporary path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from chatsvc.audit.log import AuditLog
from chatsvc.audit.options import AuditOptions
from tests.audit.logs import Time, write_some


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def options(tmp_path: Path) -> AuditOptions:
    # A test that expects no alarm must not depend on how full this machine is.
    return AuditOptions(tmp_path / "audit", tmp_path / "keys", lock_timeout_s=0, retry_s=0.05, space_alarm=1)


@pytest.fixture
def log(options: AuditOptions) -> Iterator[AuditLog]:
    opened = AuditLog.open(options)
    yield opened
    opened.close()


@pytest.fixture
def small_log(options: AuditOptions, time: Time) -> AuditOptions:
    """A finished log of a few records."""
    write_some(options, time, 3)
    return options
