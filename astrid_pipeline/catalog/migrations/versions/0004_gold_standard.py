"""What is known of the sources that were put in to measure the scanners, and objects that such sources show as."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what is true of a source that was put in; older ones were all transients."""
    for table in ("sources", "validation_events"):
        op.add_column(table, sa.Column("truth", sa.Text(), nullable=True))
        op.create_check_constraint(
            op.f(f"ck_{table}_truth"), table, "truth IS NULL OR truth IN ('real', 'bogus')"
        )
    op.drop_constraint(op.f("ck_objects_kind"), "objects", type_="check")
    op.create_check_constraint(
        op.f("ck_objects_kind"), "objects", "kind IN ('stationary', 'moving', 'injected')"
    )


def downgrade() -> None:
    """Take it away, with the objects and sources that only it explains; the labels stay."""
    op.execute("DELETE FROM sources WHERE truth = 'bogus'")
    op.execute("UPDATE sources SET object_id = NULL WHERE injected")
    op.execute("DELETE FROM objects WHERE kind = 'injected'")
    op.drop_constraint(op.f("ck_objects_kind"), "objects", type_="check")
    op.create_check_constraint(op.f("ck_objects_kind"), "objects", "kind IN ('stationary', 'moving')")
    for table in ("sources", "validation_events"):
        op.drop_constraint(op.f(f"ck_{table}_truth"), table, type_="check")
        op.drop_column(table, "truth")
