"""The WSGI entry point, ``chatsvc.wsgi:app``. The only module that does work when it is imported."""

from __future__ import annotations

import atexit
import signal
from types import FrameType

from chatsvc import logs
from chatsvc.app import create_app, running_in
from chatsvc.chat.drain import Drain
from chatsvc.settings.load import load

# Streams end with an error event this long before gunicorn's graceful_timeout cuts them off.
_BEFORE_GUNICORN_S = 2.0


def drain_on_sigterm(drain: Drain, timeout_s: float) -> None:
    """On SIGTERM refuse new requests at once, and end running streams before gunicorn cuts them off."""
    before = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        drain.begin(max(1.0, timeout_s - _BEFORE_GUNICORN_S))
        if callable(before):
            before(number, frame)

    signal.signal(signal.SIGTERM, handle)


settings = load()
logs.configure(settings.logs.level)
app = create_app(settings)
atexit.register(running_in(app).close)
drain_on_sigterm(running_in(app).drain, settings.server.drain_timeout_s)
