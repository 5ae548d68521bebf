"""Alembic runs this for every migration, on the caller's connection and in the caller's transaction."""

from alembic import context

from chatsvc.store.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
context.run_migrations()
