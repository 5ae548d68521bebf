"""What Alembic runs for every migration: on the connection, and in the transaction, that the caller gives."""

from alembic import context

from chatsvc.store.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
context.run_migrations()
