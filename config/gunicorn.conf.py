"""gunicorn's configuration. Every value that an operator may change comes from chatsvc's settings.

One worker process with threads, because tokens, quotas and the audit log have one owner each. Further processes are
replicas: each has its own audit log, and they share PostgreSQL and Redis.
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
# Equal to nginx's client_body_timeout and send_timeout, for a service without nginx; see also http/server/worker.py.
_RECEIVE_TIMEOUT_S, _SEND_TIMEOUT_S = 10, 15
# File descriptors for the database, the audit log, the engine and short-lived files.
_OTHER_DESCRIPTORS = 256
_host = _settings.server.host


def _connections() -> int:
    """The maximum of connections, within the limit of file descriptors of this process."""
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
worker_connections = _connections()  # idle keep-alive connections need no thread
backlog = 512
max_requests = 0
preload_app = False

timeout = 60  # for a stuck main thread; streams run in other threads
graceful_timeout = int(_settings.server.drain_timeout_s)
keepalive = 75  # longer than nginx's side: see keepalive_timeout in nginx/chatsvc.conf
worker_tmp_dir = "/dev/shm"  # noqa: S108  (writing the heartbeat file must not block on a disk)
umask = 0o077

control_socket_disable = True
forwarder_headers = ""
forwarded_allow_ips = ""  # only chatsvc.guard.address decides which proxies are trusted
header_map = "refuse"
http_protocols = "h1"
limit_request_line = 8190
limit_request_fields = 64
limit_request_field_size = 16384


class worker_class(Worker):  # noqa: N801  (gunicorn's name)
    """Our worker, with threads reserved for health."""

    num_reserved = HEALTH_THREADS


accesslog = None  # the application writes the access log, because it knows the principal
errorlog = "-"
loglevel = _settings.logs.level.lower()


class logger_class(glogging.Logger):  # noqa: N801  (gunicorn's name)
    """gunicorn's messages as JSON lines like all others, with the same masking."""

    def setup(self, cfg: object) -> None:
        """Replace the handler that the base class made."""
        super().setup(cfg)
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLines())
        self.error_log.handlers = [handler]
        self.error_log.propagate = False

    def exception(self, msg: object, *args: object, **kwargs: object) -> None:
        """A client that neither sends nor reads is disconnected; that is not logged as an error."""
        if isinstance(sys.exc_info()[1], BlockingIOError | TimeoutError):
            self.debug("a client was too slow and was disconnected")
        else:
            super().exception(msg, *args, **kwargs)


def on_starting(server: object) -> None:
    """No core dump and no debugger, here and in the worker, because passwords and prompts are in memory."""
    del server
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def when_ready(server: Any) -> None:
    """Let the proxy's group connect to the unix socket (its directory restricts access), and write the address file.

    Connections inherit the listener's time limits, so a half-sent request cannot hold a thread for ever.
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
    """Remove the address file: nothing listens any more."""
    del server
    address_file(_settings.home).unlink(missing_ok=True)


def post_fork(server: object, worker: object) -> None:
    """End with the master, even if that is killed: a worker left behind would keep the port and the audit log.

    And stay on one core: only one thread holds the GIL at a time. Moving it between cores costs processor time, and the
    engine, whose threads wait for each other on all cores, would be slowed by it.
    """
    del server, worker
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    core = secrets.choice(sorted(os.sched_getaffinity(0)))  # random, so that several services do not share one core
    with contextlib.suppress(OSError):  # a sandbox may forbid it, and the service works without
        os.sched_setaffinity(0, {core})


def post_worker_init(worker: object) -> None:
    """Exclude what is loaded now from garbage collection: it is never freed, and collecting it would pause streams."""
    del worker
    gc.collect()
    gc.freeze()


def pre_request(worker: object, req: Any) -> None:
    """Make a second X-Forwarded-For visible to the application: WSGI joins repeated headers with a comma, like a chain.

    A trusted proxy sends exactly one (guard/address.py), so a part that does not parse is added to the chain.
    """
    del worker
    if sum(name == "X-FORWARDED-FOR" for name, _ in req.headers) > 1:
        req.headers.append(("X-FORWARDED-FOR", "sent-twice"))
