"""No way out: the main job in a network namespace with loopback alone, and no connection beyond it is even tried."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(300)]

_NEEDED = ("unshare", "nsenter", "ip", "strace", "curl")
_FAMILY = re.compile(r"sa_family=(AF_\w+)")
_ADDRESS = re.compile(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"')
_QUICKSTART = "ip link set lo up && exec strace -f -qq -e trace=connect,sendto,sendmsg,sendmmsg -o {trace} {python} -m chatsvc.cli.main quickstart"


@pytest.fixture
def can_unplug() -> None:
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this account may not make a network namespace")


@pytest.mark.usefixtures("can_unplug")
def test_the_main_job_runs_unplugged_and_tries_no_connection_beyond_loopback(make_home, start, until, tmp_path) -> None:
    home = make_home("unplugged")
    home.bring_model()
    trace = tmp_path / "trace"
    script = _QUICKSTART.format(trace=trace, python=sys.executable)
    program = start(
        ["unshare", "-n", "sh", "-c", script],
        {**home.environment, "PORT": "8080"},
        home.path.parent / "quickstart.log",
    )
    try:
        answer = ask_unplugged(program, until)
    finally:
        stop(home, program)
    assert "Paris" in answer.stdout, answer
    tried = [line for line in trace.read_text().splitlines() if leaves_the_machine(line)]
    assert tried == []
    assert "AF_UNIX" in trace.read_text(), "the trace has seen the service's own sockets"


def ask_unplugged(program, until) -> subprocess.CompletedProcess:
    """Wait for the service, then paste its own line inside its namespace."""
    until(lambda: "chatsvc is ready at" in program.text or program.process.poll() is not None, 200)
    assert program.process.poll() is None, program.text
    inside = ["nsenter", f"--net=/proc/{program.process.pid}/ns/net"]
    pasted = next(line for line in program.text.splitlines() if line.startswith("curl"))
    return subprocess.run([*inside, "sh", "-c", pasted], capture_output=True, text=True, timeout=60, check=False)


def stop(home, program) -> None:
    """End the service itself: strace, when it is ended, lets go of what it traces."""
    pid = (home.path / "run" / "serve.pid").read_text().strip()
    if pid:
        os.kill(int(pid), signal.SIGTERM)
        assert program.process.wait(60) == 0


def leaves_the_machine(line: str) -> bool:
    family = _FAMILY.search(line)
    if family is None or family[1] in {"AF_UNIX", "AF_LOCAL", "AF_NETLINK", "AF_UNSPEC"}:
        return False
    address = _ADDRESS.search(line)
    return address is None or not (address[1] or address[2]).startswith(("127.", "::1"))


@pytest.mark.parametrize(
    ("line", "leaves"),
    [
        ('connect(3, {sa_family=AF_UNIX, sun_path="/run/x"}, 9) = 0', False),
        ('connect(3, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("127.0.0.1")}, 16) = 0', False),
        ('connect(3, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("10.0.0.2")}, 16) = -1', True),
        ('connect(3, {sa_family=AF_INET6, inet_pton(AF_INET6, "2001:db8::1", &x)}, 28) = -1', True),
        ('sendto(3, "x", 1, 0, NULL, 0) = 1', False),
    ],
)
def test_the_test_knows_a_way_out_when_it_sees_one(line: str, leaves: bool) -> None:
    assert leaves_the_machine(line) == leaves
