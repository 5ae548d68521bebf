"""PostgreSQL by psycopg, with a client-side time limit on every answer. Knows nothing about what is stored.

The server's own limits (``statement_timeout``) do not help if the server hangs or packets are dropped; its kernel may
still acknowledge what we send. So each wait for an answer ends here after a few seconds, the connection is closed, and
the breaker refuses other callers.
"""

from __future__ import annotations

from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from sqlalchemy import Engine, create_engine, event, make_url

from chatsvc.store.breaker import Breaker

Value = TypeVar("Value")

_CONNECT_TIMEOUT_S = 2
_POOL_TIMEOUT_S = 2
# For the ping of an idle connection before it is used: one round trip.
_PING_TIMEOUT_S = 2.0
# More than the server's own limits, because its errors name a better reason.
_ANSWER_TIMEOUT_S = 6.0
_OPTIONS = "-c statement_timeout=5000 -c lock_timeout=5000 -c idle_in_transaction_session_timeout=15000"


class TimeLimitedConnection(psycopg.Connection[Any]):
    """A connection that is closed if the server does not answer in time."""

    breaker: Breaker
    answer_timeout_s = _PING_TIMEOUT_S

    def wait(self, gen: PQGen[Value], interval: float = 0.1, timeout: float | None = None) -> Value:
        """As in the base class, for at most ``answer_timeout_s``."""
        try:
            return super().wait(gen, interval, self.answer_timeout_s if timeout is None else timeout)
        except psycopg.OperationalError as error:
            if error.sqlstate is None and not self.closed:  # no error of the server, no lost connection: a time-out
                self.pgconn.finish()
                self.breaker.trip()
            raise


def postgres_engine(url: str, pool_size: int, breaker: Breaker) -> Engine:
    """The engine. It trips ``breaker`` when the server does not answer and closes it when it does."""
    parsed = make_url(url)
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    engine = create_engine(
        parsed,
        hide_parameters=True,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=_POOL_TIMEOUT_S,
        pool_pre_ping=True,
        connect_args={"connect_timeout": _CONNECT_TIMEOUT_S, "options": _OPTIONS},
    )

    def connect(_dialect: Any, _record: Any, arguments: Any, keywords: Any) -> TimeLimitedConnection:
        try:
            connection = TimeLimitedConnection.connect(*arguments, **keywords)
        except psycopg.errors.ConnectionTimeout:
            breaker.trip()
            raise
        connection.breaker = breaker
        return connection

    def check_out(connection: TimeLimitedConnection, _record: Any, _proxy: Any) -> None:
        connection.answer_timeout_s = _ANSWER_TIMEOUT_S
        breaker.close()

    def check_in(connection: TimeLimitedConnection | None, _record: Any) -> None:
        if connection is not None:  # None: it was closed
            connection.answer_timeout_s = _PING_TIMEOUT_S

    event.listen(engine, "do_connect", connect)
    event.listen(engine, "checkout", check_out)
    event.listen(engine, "checkin", check_in)
    return engine
