"""The first tables of the catalogue."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "surveys",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_surveys")),
        sa.UniqueConstraint("name", name=op.f("uq_surveys_name")),
    )
    op.create_table(
        "training_datasets",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column(
            "collection_params", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False
        ),
        sa.Column("total_samples", sa.Integer(), nullable=False),
        sa.Column("anomaly_ratio", sa.Double(), nullable=True),
        sa.Column("quality_score", sa.Double(), nullable=True),
        sa.Column("content_hash", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_training_datasets")),
        sa.UniqueConstraint("name", name=op.f("uq_training_datasets_name")),
    )
    op.create_table(
        "fields",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("survey_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("ra", sa.Double(), nullable=True),
        sa.Column("dec", sa.Double(), nullable=True),
        sa.Column("radius", sa.Double(), nullable=False),
        sa.Column("filters", postgresql.ARRAY(sa.Text()), server_default="{}", nullable=False),
        sa.Column("site_longitude", sa.Double(), nullable=True),
        sa.Column("reference", sa.Text(), server_default="auto", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["survey_id"], ["surveys.id"], name=op.f("fk_fields_survey_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_fields")),
        sa.UniqueConstraint("name", name=op.f("uq_fields_name")),
    )
    op.create_index(op.f("ix_fields_survey_id"), "fields", ["survey_id"], unique=False)
    op.create_table(
        "training_runs",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("dataset_id", sa.BigInteger(), nullable=True),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("model_version", sa.Text(), nullable=True),
        sa.Column("mlflow_run_id", sa.Text(), nullable=False),
        sa.Column("dagster_run_id", sa.Text(), nullable=True),
        sa.Column(
            "training_params", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False
        ),
        sa.Column(
            "performance_metrics",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default="{}",
            nullable=False,
        ),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["dataset_id"], ["training_datasets.id"], name=op.f("fk_training_runs_dataset_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_training_runs")),
        sa.UniqueConstraint("mlflow_run_id", name=op.f("uq_training_runs_mlflow_run_id")),
    )
    op.create_index(op.f("ix_training_runs_dataset_id"), "training_runs", ["dataset_id"], unique=False)
    op.create_table(
        "difference_runs",
        sa.Column("candidates", sa.Integer(), nullable=False),
        sa.Column("detections", sa.Integer(), nullable=False),
        sa.Column("dagster_run_id", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("exposures", sa.Integer(), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("field_id", sa.BigInteger(), nullable=False),
        sa.Column("night", sa.Date(), nullable=False),
        sa.CheckConstraint("status IN ('success', 'superseded')", name=op.f("ck_difference_runs_status")),
        sa.ForeignKeyConstraint(["field_id"], ["fields.id"], name=op.f("fk_difference_runs_field_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_difference_runs")),
    )
    op.create_index(
        "ix_difference_runs_field_id_night", "difference_runs", ["field_id", "night"], unique=False
    )
    op.create_table(
        "preprocess_runs",
        sa.Column("unreadable", sa.Integer(), nullable=False),
        sa.Column("dagster_run_id", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("exposures", sa.Integer(), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("field_id", sa.BigInteger(), nullable=False),
        sa.Column("night", sa.Date(), nullable=False),
        sa.CheckConstraint("status IN ('success', 'superseded')", name=op.f("ck_preprocess_runs_status")),
        sa.ForeignKeyConstraint(["field_id"], ["fields.id"], name=op.f("fk_preprocess_runs_field_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_preprocess_runs")),
    )
    op.create_index(
        "ix_preprocess_runs_field_id_night", "preprocess_runs", ["field_id", "night"], unique=False
    )
    op.create_table(
        "references",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("field_id", sa.BigInteger(), nullable=False),
        sa.Column("reference_id", sa.Text(), nullable=False),
        sa.Column("filter", sa.Text(), nullable=False),
        sa.Column("valid_from", sa.Date(), nullable=False),
        sa.Column("exposure_ids", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("depth", sa.Double(), nullable=True),
        sa.Column("coverage", sa.Double(), nullable=True),
        sa.Column("dagster_run_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["field_id"], ["fields.id"], name=op.f("fk_references_field_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_references")),
        sa.UniqueConstraint("field_id", "reference_id", name=op.f("uq_references_field_id_reference_id")),
    )
    op.create_table(
        "candidates",
        sa.Column("candidate_id", sa.Text(), nullable=False),
        sa.Column("difference_run_id", sa.BigInteger(), nullable=False),
        sa.Column("exposure_id", sa.Text(), nullable=False),
        sa.Column("mjd", sa.Double(), nullable=False),
        sa.Column("filter", sa.Text(), nullable=True),
        sa.Column("x", sa.Double(), nullable=False),
        sa.Column("y", sa.Double(), nullable=False),
        sa.Column("ra", sa.Double(), nullable=True),
        sa.Column("dec", sa.Double(), nullable=True),
        sa.Column("hpx29", sa.BigInteger(), nullable=True),
        sa.Column("flux", sa.Double(), nullable=True),
        sa.Column("flux_err", sa.Double(), nullable=True),
        sa.Column("snr", sa.Double(), nullable=True),
        sa.Column("mag", sa.Double(), nullable=True),
        sa.Column("mag_err", sa.Double(), nullable=True),
        sa.Column("flags", sa.Integer(), server_default="0", nullable=False),
        sa.Column("features", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("field_id", sa.BigInteger(), nullable=False),
        sa.Column("night", sa.Date(), nullable=False),
        sa.ForeignKeyConstraint(
            ["difference_run_id"], ["difference_runs.id"], name=op.f("fk_candidates_difference_run_id")
        ),
        sa.ForeignKeyConstraint(["field_id"], ["fields.id"], name=op.f("fk_candidates_field_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_candidates")),
        sa.UniqueConstraint(
            "field_id", "night", "candidate_id", name=op.f("uq_candidates_field_id_night_candidate_id")
        ),
    )
    op.create_index(op.f("ix_candidates_candidate_id"), "candidates", ["candidate_id"], unique=False)
    op.create_index(
        op.f("ix_candidates_difference_run_id"), "candidates", ["difference_run_id"], unique=False
    )
    op.create_index(op.f("ix_candidates_exposure_id"), "candidates", ["exposure_id"], unique=False)
    op.create_index(op.f("ix_candidates_hpx29"), "candidates", ["hpx29"], unique=False)
    op.create_index(op.f("ix_candidates_mjd"), "candidates", ["mjd"], unique=False)
    op.create_table(
        "detections",
        sa.Column("detection_id", sa.Text(), nullable=False),
        sa.Column("candidate_id", sa.Text(), nullable=True),
        sa.Column("confidence_score", sa.Double(), nullable=True),
        sa.Column("class", sa.Text(), nullable=True),
        sa.Column("model_name", sa.Text(), nullable=True),
        sa.Column("model_version", sa.Text(), nullable=True),
        sa.Column("is_validated", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("difference_run_id", sa.BigInteger(), nullable=False),
        sa.Column("exposure_id", sa.Text(), nullable=False),
        sa.Column("mjd", sa.Double(), nullable=False),
        sa.Column("filter", sa.Text(), nullable=True),
        sa.Column("x", sa.Double(), nullable=False),
        sa.Column("y", sa.Double(), nullable=False),
        sa.Column("ra", sa.Double(), nullable=True),
        sa.Column("dec", sa.Double(), nullable=True),
        sa.Column("hpx29", sa.BigInteger(), nullable=True),
        sa.Column("flux", sa.Double(), nullable=True),
        sa.Column("flux_err", sa.Double(), nullable=True),
        sa.Column("snr", sa.Double(), nullable=True),
        sa.Column("mag", sa.Double(), nullable=True),
        sa.Column("mag_err", sa.Double(), nullable=True),
        sa.Column("flags", sa.Integer(), server_default="0", nullable=False),
        sa.Column("features", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("field_id", sa.BigInteger(), nullable=False),
        sa.Column("night", sa.Date(), nullable=False),
        sa.ForeignKeyConstraint(
            ["difference_run_id"], ["difference_runs.id"], name=op.f("fk_detections_difference_run_id")
        ),
        sa.ForeignKeyConstraint(["field_id"], ["fields.id"], name=op.f("fk_detections_field_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_detections")),
        sa.UniqueConstraint(
            "field_id", "night", "detection_id", name=op.f("uq_detections_field_id_night_detection_id")
        ),
    )
    op.create_index(op.f("ix_detections_candidate_id"), "detections", ["candidate_id"], unique=False)
    op.create_index(op.f("ix_detections_confidence_score"), "detections", ["confidence_score"], unique=False)
    op.create_index(op.f("ix_detections_detection_id"), "detections", ["detection_id"], unique=False)
    op.create_index(
        op.f("ix_detections_difference_run_id"), "detections", ["difference_run_id"], unique=False
    )
    op.create_index(op.f("ix_detections_exposure_id"), "detections", ["exposure_id"], unique=False)
    op.create_index(op.f("ix_detections_hpx29"), "detections", ["hpx29"], unique=False)
    op.create_index(op.f("ix_detections_mjd"), "detections", ["mjd"], unique=False)
    op.create_table(
        "observations",
        sa.Column("preprocess_run_id", sa.BigInteger(), nullable=False),
        sa.Column("exposure_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("mjd", sa.Double(), nullable=True),
        sa.Column("filter", sa.Text(), nullable=True),
        sa.Column("instrument", sa.Text(), nullable=True),
        sa.Column("exposure", sa.Double(), nullable=True),
        sa.Column("ra", sa.Double(), nullable=True),
        sa.Column("dec", sa.Double(), nullable=True),
        sa.Column("hpx29", sa.BigInteger(), nullable=True),
        sa.Column("url", sa.Text(), nullable=True),
        sa.Column("path", sa.Text(), nullable=True),
        sa.Column("size", sa.BigInteger(), nullable=True),
        sa.Column("sha256", sa.Text(), nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("field_id", sa.BigInteger(), nullable=False),
        sa.Column("night", sa.Date(), nullable=False),
        sa.ForeignKeyConstraint(["field_id"], ["fields.id"], name=op.f("fk_observations_field_id")),
        sa.ForeignKeyConstraint(
            ["preprocess_run_id"], ["preprocess_runs.id"], name=op.f("fk_observations_preprocess_run_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_observations")),
        sa.UniqueConstraint(
            "field_id", "night", "exposure_id", name=op.f("uq_observations_field_id_night_exposure_id")
        ),
    )
    op.create_index(op.f("ix_observations_exposure_id"), "observations", ["exposure_id"], unique=False)
    op.create_index(op.f("ix_observations_hpx29"), "observations", ["hpx29"], unique=False)
    op.create_index(op.f("ix_observations_mjd"), "observations", ["mjd"], unique=False)
    op.create_index(
        op.f("ix_observations_preprocess_run_id"), "observations", ["preprocess_run_id"], unique=False
    )


def downgrade() -> None:
    """Remove the tables, those that point at others first."""
    for table in (
        "observations",
        "detections",
        "candidates",
        "references",
        "preprocess_runs",
        "difference_runs",
        "training_runs",
        "fields",
        "training_datasets",
        "surveys",
    ):
        op.drop_table(table)
