"""How often a field's archive is asked, and the sky cell that a field is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the two columns; older fields keep their archive's own pace and their circle."""
    op.add_column("fields", sa.Column("poll_minutes", sa.Double(), nullable=True))
    op.add_column("fields", sa.Column("cell", sa.Text(), server_default="", nullable=False))


def downgrade() -> None:
    """Take them away."""
    op.drop_column("fields", "cell")
    op.drop_column("fields", "poll_minutes")
