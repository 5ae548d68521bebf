"""gunicorn, as this service needs it; every value that an operator may change comes from chatsvc's own settings.

One process with threads: tokens, quotas and the audit log have one owner each. More processes share PostgreSQL
and Redis, and are separate services with an audit log each.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import resource
import secrets
import signal
import socket
import stat
import struct
import sys
from pathlib import Path
from typing import Any

from gunicorn import glogging

from chatsvc.http.server.worker import Worker
from chatsvc.logs import JsonLines
from chatsvc.settings.load import HEALTH_THREADS, load
from chatsvc.supervisor.address import address_file, write_address

_settings = load()
_SPARE_CONNECTIONS = 512
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
# As nginx's client_body_timeout and send_timeout, for where no nginx is in front; see also chatsvc.http.server.worker.
_RECEIVE_TIMEOUT_S, _SEND_TIMEOUT_S = 10, 15
# Descriptors of the database, the audit log and the engine, and of what comes and goes.
_OTHER_DESCRIPTORS = 256
_host = _settings.server.host


def _connections() -> int:
    """How many connections there may be, within the file descriptors that this process may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _settings.server_threads + _SPARE_CONNECTIONS + _OTHER_DESCRIPTORS
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return max(64, min(limit, wanted) - _OTHER_DESCRIPTORS)


if _settings.server.socket:
    bind = f"unix:{_settings.server.socket}"
else:
    bind = f"{f'[{_host}]' if ':' in _host else _host}:{_settings.server.port}"

wsgi_app = "chatsvc.wsgi:app"
proc_name = "chatsvc-web"
workers = 1
threads = _settings.server_threads
worker_connections = _connections()  # idle kept-alive connections need no thread
backlog = 512
max_requests = 0
preload_app = False

timeout = 60  # a worker whose main thread is stuck; streams run in other threads
graceful_timeout = int(_settings.server.drain_timeout_s)
keepalive = 75  # longer than nginx keeps its side
worker_tmp_dir = "/dev/shm"  # noqa: S108  (the heartbeat file must not wait for a disk)
umask = 0o077

control_socket_disable = True
forwarder_headers = ""
forwarded_allow_ips = ""  # who is a proxy is decided in one place: chatsvc.guard.address
header_map = "refuse"
http_protocols = "h1"
limit_request_line = 8190
limit_request_fields = 64
limit_request_field_size = 16384


class worker_class(Worker):  # noqa: N801  (gunicorn's name)
    """Our worker, which keeps some threads for health."""

    num_reserved = HEALTH_THREADS


accesslog = None  # the access line is the application's: it knows the principal
errorlog = "-"
loglevel = _settings.logs.level.lower()


class logger_class(glogging.Logger):  # noqa: N801  (gunicorn's name)
    """gunicorn's own messages as the same JSON lines, with the same masking."""

    def setup(self, cfg: object) -> None:
        """Replace the handler that the base class made."""
        super().setup(cfg)
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLines())
        self.error_log.handlers = [handler]
        self.error_log.propagate = False

    def exception(self, msg: object, *args: object, **kwargs: object) -> None:
        """A client that neither sends nor reads is closed, and is no error of ours."""
        if isinstance(sys.exc_info()[1], BlockingIOError | TimeoutError):
            self.debug("a client was too slow and was closed")
        else:
            super().exception(msg, *args, **kwargs)


def on_starting(server: object) -> None:
    """No core file and no debugger of the same account, here and in the worker: passwords and prompts are in memory."""
    del server
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def when_ready(server: Any) -> None:
    """Let the proxy's group connect; the directory around the socket decides who may come near.

    Connections have the listener's time limits from birth: one half-sent request must not hold a thread for ever.
    """
    for listener in server.LISTENERS:
        for option, limit_s in ((socket.SO_RCVTIMEO, _RECEIVE_TIMEOUT_S), (socket.SO_SNDTIMEO, _SEND_TIMEOUT_S)):
            listener.sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", limit_s, 0))
    path = Path(_settings.server.socket) if _settings.server.socket else None
    if path and stat.S_ISSOCK(path.stat().st_mode):
        path.chmod(0o660)
    with contextlib.suppress(OSError):  # only `chatsvc status` and `chat` need it
        write_address(_settings)


def on_exit(server: object) -> None:
    """The address is no longer served."""
    del server
    address_file(_settings.home).unlink(missing_ok=True)


def post_fork(server: object, worker: object) -> None:
    """End with the master, also when it is killed: a worker of its own would keep the port and the audit log.

    And stay on one core. Only one of its threads holds Python's lock at a time, and handing it from core to core takes
    processor time that the engine, whose threads wait for each other on all cores, then waits for.
    """
    del server, worker
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    core = secrets.choice(sorted(os.sched_getaffinity(0)))  # not the same one for every service of a machine
    with contextlib.suppress(OSError):  # a sandbox that forbids it is no reason not to serve
        os.sched_setaffinity(0, {core})


def post_worker_init(worker: object) -> None:
    """What is loaded now lives as long as the worker: the collector need not look at it again while streams wait."""
    del worker
    gc.collect()
    gc.freeze()


def pre_request(worker: object, req: Any) -> None:
    """Let the application see a second X-Forwarded-For: repeated headers are joined with a comma, as a chain has too.

    A trusted proxy sends exactly one (guard/address.py), so the joined chain gets a part that does not parse.
    """
    del worker
    if sum(name == "X-FORWARDED-FOR" for name, _ in req.headers) > 1:
        req.headers.append(("X-FORWARDED-FOR", "sent-twice"))
