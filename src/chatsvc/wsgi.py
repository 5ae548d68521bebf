"""What gunicorn imports: the one module that does its work at import. ``chatsvc.wsgi:app``."""

from __future__ import annotations

import atexit
import signal
from types import FrameType

from chatsvc import logs
from chatsvc.app import create_app, running_in
from chatsvc.chat.drain import Drain
from chatsvc.settings.load import load

# What is still streaming needs a moment to say so before gunicorn's own patience ends.
_BEFORE_GUNICORN_S = 2.0


def drain_on_sigterm(drain: Drain, timeout_s: float) -> None:
    """Refuse new work as soon as gunicorn is told to end, and end what runs before gunicorn cuts it off."""
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
