"""Whether a client has closed its connection. Knows nothing about requests."""

from __future__ import annotations

import select
from collections.abc import Callable, Mapping
from typing import Any

_GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL


def is_gone(environ: Mapping[str, Any]) -> Callable[[], bool]:
    """A probe of this request's connection that never blocks. Always False where the server shows no socket.

    A client that closes only its sending side counts as gone too: over TCP the two cannot be distinguished.
    """
    sock = environ.get("gunicorn.socket") or environ.get("werkzeug.socket")
    if sock is None:
        return lambda: False

    def probe() -> bool:
        fd = sock.fileno()
        if fd < 0:
            return True
        poll = select.poll()
        poll.register(fd, _GONE & ~select.POLLNVAL)
        return any(events & _GONE for _, events in poll.poll(0))

    return probe
