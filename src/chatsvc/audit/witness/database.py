"""A database as a witness: a table of checkpoints on a server that the owner of this host does not administer.

::

    chatsvc_checkpoints (origin, size, note, seen_at), primary key (origin, size)

The role that this service uses there needs INSERT and SELECT only. What it keeps becomes a file for ``audit verify
--witness`` by ``psql -Atc "SELECT note FROM chatsvc_checkpoints ORDER BY origin, size"``.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, DateTime, MetaData, String, Table, Text, func, insert, inspect, select
from sqlalchemy.exc import ArgumentError

from chatsvc.audit.witness.files import Witness, WitnessRefuses
from chatsvc.audit.witness.seen import checkpoint_in
from chatsvc.errors import OperatorError
from chatsvc.store.database import Database

_TABLE = Table(
    "chatsvc_checkpoints",
    MetaData(),
    Column("origin", String(255), primary_key=True),
    Column("size", BigInteger, primary_key=True, autoincrement=False),
    Column("note", Text, nullable=False),
    Column("seen_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)


class DatabaseWitness(Witness):
    """Keeps checkpoints in a table; refuses a shorter log, or another one of the same length."""

    name = "database"

    def __init__(self, url: str) -> None:
        try:
            self._database = Database(url, pool_size=1)
        except (ArgumentError, ModuleNotFoundError) as error:
            raise OperatorError(f"audit.witness_url is not a usable database URL: {type(error).__name__}.") from None
        self._is_ready = False

    def publish(self, note: str) -> None:
        """Insert the note.

        Raises:
            StoreUnavailable: the server does not answer.
            WitnessRefuses: it has seen more records, or another log.
        """
        checkpoint = checkpoint_in(note)
        own = _TABLE.c.origin == checkpoint.origin
        with self._database.session() as session:
            if not self._is_ready and not inspect(session.connection()).has_table(_TABLE.name):
                _TABLE.create(session.connection())
            latest = session.execute(
                select(_TABLE.c.size, _TABLE.c.note).where(own).order_by(_TABLE.c.size.desc())
            ).first()
            if latest is None or latest.size < checkpoint.size:
                session.execute(insert(_TABLE).values(origin=checkpoint.origin, size=checkpoint.size, note=note))
            elif latest.note != note:
                raise WitnessRefuses(
                    f"it has seen {latest.size} records, which the checkpoint of {checkpoint.size} does not continue"
                )
        self._is_ready = True

    def close(self) -> None:
        """Close the connection."""
        self._database.close()
