"""An API key may have a limit of requests at the same time, as an account has."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Forward."""
    op.add_column("api_keys", sa.Column("max_concurrent", sa.Integer(), nullable=True))


def downgrade() -> None:
    """Back."""
    op.drop_column("api_keys", "max_concurrent")
