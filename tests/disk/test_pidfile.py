"""The pidfile: one process serves a home, others can tell, and no lock file is opened through a link."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from chatsvc.disk import pidfile
from chatsvc.disk.lock import Lock
from chatsvc.errors import OperatorError
from chatsvc.guard.credentials.keyring import KeyRing, read_or_make_secret


def test_one_process_serves_a_home_and_others_can_tell(tmp_path: Path) -> None:
    assert pidfile.serving_pid(tmp_path) is None
    with pidfile.hold(tmp_path):
        assert pidfile.serving_pid(tmp_path) == os.getpid()
        with pytest.raises(OperatorError, match=f"served already by process {os.getpid()}"), pidfile.hold(tmp_path):
            pass
    assert pidfile.serving_pid(tmp_path) is None


def test_a_file_that_a_killed_process_left_is_free(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from chatsvc.disk import pidfile\n"
        "with pidfile.hold(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert pidfile.pidfile_path(tmp_path).read_text().strip().isdigit()
    assert pidfile.serving_pid(tmp_path) is None
    with pidfile.hold(tmp_path):
        pass


def test_the_serving_process_is_told_to_swap(tmp_path: Path) -> None:
    assert not pidfile.tell_to_swap(tmp_path)
    received = []
    before = signal.signal(signal.SIGHUP, lambda number, _frame: received.append(number))
    try:
        with pidfile.hold(tmp_path):
            assert pidfile.tell_to_swap(tmp_path)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert received == [signal.SIGHUP]


@pytest.mark.parametrize("make", ["symlink", "hard link", "FIFO", "socket"])
def test_no_lock_file_is_opened_through_a_link(tmp_path: Path, make: str) -> None:
    """The pidfile, the audit log's lock, the key ring's and a secret's: what a link leads to stays as it is."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    keys, audit = tmp_path / "keys", tmp_path / "audit"
    places = [pidfile.pidfile_path(tmp_path), audit / "audit.lock", keys / ".lock"]
    listener = socket.socket(socket.AF_UNIX)
    for place in places:
        place.parent.mkdir()
        if make == "symlink":
            place.symlink_to(victim)
        elif make == "hard link":
            place.hardlink_to(victim)
        elif make == "FIFO":
            os.mkfifo(place)
        else:
            listener.bind(str(place))
            listener.close()
            listener = socket.socket(socket.AF_UNIX)
    listener.close()

    def serve() -> None:
        with pidfile.hold(tmp_path):
            pass

    attempts = [
        serve,
        lambda: pidfile.serving_pid(tmp_path),
        lambda: Lock(audit / "audit.lock", 0),
        lambda: KeyRing(keys, "HS256", keep_s=1),
        lambda: read_or_make_secret(keys / "throttle.key"),
    ]
    for attempt in attempts:
        with pytest.raises(OSError, match="regular file with one name"):
            attempt()
    assert victim.read_text() == "precious"
    assert not list(keys.glob("*.key"))
