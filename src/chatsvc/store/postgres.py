"""PostgreSQL by psycopg, with a time limit of ours on every answer. Knows nothing about what is stored.

The server's own time limits end what takes it too long, but a server that hangs, or whose packets are dropped, keeps
none: its kernel may even go on acknowledging what we send. So each wait for an answer ends here after a while, its
connection is given up, and the breaker tells everybody else.
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
# An idle connection is asked whether it still lives before it is used; that takes no longer than a way there and back.
_PING_TIMEOUT_S = 2.0
# A little more than the server allows itself: what it can still refuse by itself has the better reason.
_ANSWER_TIMEOUT_S = 6.0
_OPTIONS = "-c statement_timeout=5000 -c lock_timeout=5000 -c idle_in_transaction_session_timeout=15000"


class ImpatientConnection(psycopg.Connection[Any]):
    """A connection that is given up when its server takes too long."""

    breaker: Breaker
    answer_timeout_s = _PING_TIMEOUT_S

    def wait(self, gen: PQGen[Value], interval: float = 0.1, timeout: float | None = None) -> Value:
        """As in the base class, but never for ever."""
        try:
            return super().wait(gen, interval, self.answer_timeout_s if timeout is None else timeout)
        except psycopg.OperationalError as error:
            if error.sqlstate is None and not self.closed:  # neither refused nor cut off: silent
                self.pgconn.finish()
                self.breaker.trip()
            raise


def postgres_engine(url: str, pool_size: int, breaker: Breaker) -> Engine:
    """The engine; ``breaker`` is tripped when the server is silent and closed when it answers."""
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

    def connect(_dialect: Any, _record: Any, arguments: Any, keywords: Any) -> ImpatientConnection:
        try:
            connection = ImpatientConnection.connect(*arguments, **keywords)
        except psycopg.errors.ConnectionTimeout:
            breaker.trip()
            raise
        connection.breaker = breaker
        return connection

    def check_out(connection: ImpatientConnection, _record: Any, _proxy: Any) -> None:
        connection.answer_timeout_s = _ANSWER_TIMEOUT_S
        breaker.close()

    def check_in(connection: ImpatientConnection | None, _record: Any) -> None:
        if connection is not None:  # None: it was given up
            connection.answer_timeout_s = _PING_TIMEOUT_S

    event.listen(engine, "do_connect", connect)
    event.listen(engine, "checkout", check_out)
    event.listen(engine, "checkin", check_in)
    return engine
