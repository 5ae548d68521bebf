"""Locks between processes."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from chatsvc.disk.lock import Lock, LockHeld


def test_a_lock_is_waited_for(tmp_path: Path):
    lock = Lock(tmp_path / "lock", 0)
    threading.Timer(0.1, lock.release).start()
    Lock(tmp_path / "lock", 10).release()


def test_a_lock_that_stays_held_is_given_up(tmp_path: Path):
    with Lock(tmp_path / "lock"), pytest.raises(LockHeld, match="held by another process"):
        Lock(tmp_path / "lock", 0.05)
