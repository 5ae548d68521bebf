"""A log whose file is taken away while it is open: noticed with the next record, and nothing is done without one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from chatsvc.audit.facts import Result
from chatsvc.audit.format import layout
from chatsvc.audit.log import AuditLog
from chatsvc.audit.options import AuditOptions
from chatsvc.errors import AuditUnavailable, OperatorError
from tests.audit.logs import last_segment
from tests.audit.test_log import CHAT, wait_until


def truncated(path: Path) -> None:
    """What logrotate's copytruncate does."""
    shutil.copy(path, path.with_suffix(".1"))
    os.truncate(path, 0)


def extended(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"{}\n")


def replaced(path: Path) -> None:
    """What an editor or rsync does: the same bytes in another file of that name."""
    copy = path.with_suffix(".new")
    shutil.copy(path, copy)
    copy.rename(path)


def linked(path: Path) -> None:
    path.with_suffix(".link").hardlink_to(path)


def behind_a_link(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


WAYS: dict[str, Callable[[Path], object]] = {
    "truncated": truncated,
    "extended": extended,
    "removed": Path.unlink,
    "renamed": lambda path: path.rename(path.with_suffix(".old")),
    "replaced": replaced,
    "linked": linked,
    "behind a link": behind_a_link,
    "directory renamed": lambda path: path.parent.rename(path.parent.with_name("elsewhere")),
    "directory removed": lambda path: shutil.rmtree(path.parent),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Callable[[Path], object]:
    return WAYS[request.param]


def test_nothing_is_begun_on_a_log_that_was_taken_away(
    options: AuditOptions, way: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    log = AuditLog.open(options)
    log.begin(CHAT).end(Result("allowed"))
    way(last_segment(options))
    for _ in range(2):  # it stays refused: nobody knows what the file is now
        with pytest.raises(AuditUnavailable):
            log.begin(CHAT)
    assert "its file was removed" in (log.problem() or "")
    assert any("somebody changed it while it was open" in each for each in log.alarms())
    assert "somebody changed it while it was open" in caplog.text
    log.close()


@pytest.mark.parametrize("name", ["first", "second"])
def test_a_log_on_two_devices_goes_on_with_the_other_and_alarms(
    options: AuditOptions, tmp_path: Path, way: Callable[[Path], object], name: str
) -> None:
    two = replace(options, second_directory=tmp_path / "second" / "log")
    places = {"first": two.directory, "second": tmp_path / "second" / "log"}
    log = AuditLog.open(two)
    way(layout.segments(places.pop(name))[-1])
    log.begin(CHAT).end(Result("allowed"))
    assert log.problem() is None
    assert any("somebody changed it" in each for each in log.alarms())
    (other,) = places.values()
    assert b'"stage":"end"' in layout.segments(other)[-1].read_bytes()
    log.close()


def test_a_truncated_log_is_no_start(options: AuditOptions) -> None:
    log = AuditLog.open(options)
    os.truncate(last_segment(options), 0)
    with pytest.raises(AuditUnavailable):
        log.event(CHAT, Result("allowed"))
    log.close()
    with pytest.raises(OperatorError, match="damaged"):
        AuditLog.open(options)


def test_checkpoints_that_are_taken_away_stop_the_log_too(options: AuditOptions) -> None:
    log = AuditLog.open(replace(options, checkpoint_records=1))
    layout.checkpoints_of(last_segment(options)).unlink()
    log.event(CHAT, Result("allowed"))  # durable before the checkpoint that cannot be kept
    wait_until(lambda: log.problem() is not None)
    with pytest.raises(AuditUnavailable):
        log.event(CHAT, Result("allowed"))
    log.close()
