"""Objects, light curves, sources, labels, users' catalogues, models, samples, keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables; make the events unchangeable; let what earlier nights found be looked at."""
    op.create_table(
        "api_keys",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("scopes", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("prefix", name=op.f("uq_api_keys_prefix")),
    )
    op.create_table(
        "audit_log",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("what", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_log")),
    )
    op.create_index(op.f("ix_audit_log_at"), "audit_log", ["at"], unique=False)
    op.create_table(
        "models",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column(
            "first_used_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_models")),
        sa.UniqueConstraint("name", "version", name=op.f("uq_models_name_version")),
    )
    op.create_table(
        "name_counters",
        sa.Column("year", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("next", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("year", name=op.f("pk_name_counters")),
    )
    op.create_table(
        "people",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=False),
        sa.Column("scopes", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_people")),
        sa.UniqueConstraint("name", name=op.f("uq_people_name")),
    )
    op.create_table(
        "saved_filters",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("query", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_saved_filters")),
        sa.UniqueConstraint("who", "name", name=op.f("uq_saved_filters_who_name")),
    )
    op.create_table(
        "user_catalogues",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("entries", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "kind IN ('galaxy', 'star', 'variable', 'transient')", name=op.f("ck_user_catalogues_kind")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user_catalogues")),
        sa.UniqueConstraint("name", name=op.f("uq_user_catalogues_name")),
    )
    op.create_table(
        "validation_events",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("source_key", sa.Text(), nullable=False),
        sa.Column("field", sa.Text(), nullable=False),
        sa.Column("night", sa.Date(), nullable=False),
        sa.Column("exposure_id", sa.Text(), nullable=False),
        sa.Column("x", sa.Double(), nullable=False),
        sa.Column("y", sa.Double(), nullable=False),
        sa.Column("ra", sa.Double(), nullable=True),
        sa.Column("dec", sa.Double(), nullable=True),
        sa.Column("injected", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("object_name", sa.Text(), nullable=True),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=True),
        sa.Column("class", sa.Text(), nullable=True),
        sa.Column("confidence", sa.Double(), nullable=True),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("score", sa.Double(), nullable=True),
        sa.Column("model_name", sa.Text(), nullable=True),
        sa.Column("model_version", sa.Text(), nullable=True),
        sa.Column("undoes", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "verdict IS NULL OR verdict IN ('real', 'bogus', 'unsure')",
            name=op.f("ck_validation_events_verdict"),
        ),
        sa.CheckConstraint("(verdict IS NULL) <> (undoes IS NULL)", name=op.f("ck_validation_events_undoes")),
        sa.CheckConstraint(
            "confidence IS NULL OR confidence BETWEEN 0 AND 1", name=op.f("ck_validation_events_confidence")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_validation_events")),
        sa.UniqueConstraint("token", name=op.f("uq_validation_events_token")),
        sa.UniqueConstraint("undoes", name=op.f("uq_validation_events_undoes")),
    )
    op.create_index(
        op.f("ix_validation_events_exposure_id"), "validation_events", ["exposure_id"], unique=False
    )
    op.create_index(
        op.f("ix_validation_events_object_name"), "validation_events", ["object_name"], unique=False
    )
    op.create_index(
        op.f("ix_validation_events_source_key"), "validation_events", ["source_key"], unique=False
    )
    op.create_index("ix_validation_events_who_at", "validation_events", ["who", "at"], unique=False)
    op.create_table(
        "catalogue_entries",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("catalogue_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("ra", sa.Double(), nullable=False),
        sa.Column("dec", sa.Double(), nullable=False),
        sa.Column("hpx29", sa.BigInteger(), nullable=False),
        sa.Column("mag", sa.Double(), nullable=True),
        sa.Column("properties", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.ForeignKeyConstraint(
            ["catalogue_id"],
            ["user_catalogues.id"],
            name=op.f("fk_catalogue_entries_catalogue_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_catalogue_entries")),
    )
    op.create_index(
        op.f("ix_catalogue_entries_catalogue_id"), "catalogue_entries", ["catalogue_id"], unique=False
    )
    op.create_index(op.f("ix_catalogue_entries_hpx29"), "catalogue_entries", ["hpx29"], unique=False)
    op.create_table(
        "training_samples",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("dataset_id", sa.BigInteger(), nullable=False),
        sa.Column("source_key", sa.Text(), nullable=False),
        sa.Column("detection_id", sa.Text(), nullable=True),
        sa.Column("image_path", sa.Text(), nullable=False),
        sa.Column("mask_path", sa.Text(), nullable=False),
        sa.Column("is_anomaly", sa.Boolean(), nullable=False),
        sa.Column("anomaly_type", sa.Text(), nullable=True),
        sa.Column("confidence", sa.Double(), nullable=True),
        sa.Column("reviewer_notes", sa.Text(), nullable=True),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column("metadata", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.ForeignKeyConstraint(
            ["dataset_id"],
            ["training_datasets.id"],
            name=op.f("fk_training_samples_dataset_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_training_samples")),
        sa.UniqueConstraint(
            "dataset_id", "source_key", name=op.f("uq_training_samples_dataset_id_source_key")
        ),
    )
    op.create_table(
        "objects",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("field_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("ra", sa.Double(), nullable=False),
        sa.Column("dec", sa.Double(), nullable=False),
        sa.Column("hpx29", sa.BigInteger(), nullable=False),
        sa.Column("detections", sa.Integer(), nullable=False),
        sa.Column("nights", sa.Integer(), nullable=False),
        sa.Column("first_mjd", sa.Double(), nullable=False),
        sa.Column("last_mjd", sa.Double(), nullable=False),
        sa.Column("best_score", sa.Double(), nullable=True),
        sa.Column("class", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("kind IN ('stationary', 'moving')", name=op.f("ck_objects_kind")),
        sa.ForeignKeyConstraint(["field_id"], ["fields.id"], name=op.f("fk_objects_field_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_objects")),
        sa.UniqueConstraint("name", name=op.f("uq_objects_name")),
    )
    op.create_index(op.f("ix_objects_field_id"), "objects", ["field_id"], unique=False)
    op.create_index(op.f("ix_objects_hpx29"), "objects", ["hpx29"], unique=False)
    op.create_index(op.f("ix_objects_last_mjd"), "objects", ["last_mjd"], unique=False)
    op.create_table(
        "light_curve_points",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("object_id", sa.BigInteger(), nullable=False),
        sa.Column("field_id", sa.BigInteger(), nullable=False),
        sa.Column("night", sa.Date(), nullable=False),
        sa.Column("exposure_id", sa.Text(), nullable=False),
        sa.Column("mjd", sa.Double(), nullable=False),
        sa.Column("filter", sa.Text(), nullable=True),
        sa.Column("flux", sa.Double(), nullable=False),
        sa.Column("flux_err", sa.Double(), nullable=False),
        sa.Column("snr", sa.Double(), nullable=False),
        sa.Column("upper_limit", sa.Double(), nullable=False),
        sa.Column("zero_point", sa.Double(), nullable=True),
        sa.Column("mag", sa.Double(), nullable=True),
        sa.Column("mag_err", sa.Double(), nullable=True),
        sa.Column("mag_limit", sa.Double(), nullable=True),
        sa.Column("flags", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["field_id"], ["fields.id"], name=op.f("fk_light_curve_points_field_id")),
        sa.ForeignKeyConstraint(
            ["object_id"], ["objects.id"], name=op.f("fk_light_curve_points_object_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_light_curve_points")),
        sa.UniqueConstraint(
            "object_id", "exposure_id", name=op.f("uq_light_curve_points_object_id_exposure_id")
        ),
    )
    op.create_index(
        "ix_light_curve_points_field_id_night", "light_curve_points", ["field_id", "night"], unique=False
    )
    op.create_table(
        "model_runs",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("model_id", sa.BigInteger(), nullable=False),
        sa.Column("difference_run_id", sa.BigInteger(), nullable=False),
        sa.Column("field_id", sa.BigInteger(), nullable=False),
        sa.Column("night", sa.Date(), nullable=False),
        sa.Column("dagster_run_id", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("detections", sa.Integer(), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["difference_run_id"], ["difference_runs.id"], name=op.f("fk_model_runs_difference_run_id")
        ),
        sa.ForeignKeyConstraint(["field_id"], ["fields.id"], name=op.f("fk_model_runs_field_id")),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_model_runs_model_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model_runs")),
    )
    op.create_index(
        op.f("ix_model_runs_difference_run_id"), "model_runs", ["difference_run_id"], unique=False
    )
    op.create_index("ix_model_runs_field_id_night", "model_runs", ["field_id", "night"], unique=False)
    op.create_index(op.f("ix_model_runs_model_id"), "model_runs", ["model_id"], unique=False)
    op.create_table(
        "sources",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("field_id", sa.BigInteger(), nullable=False),
        sa.Column("night", sa.Date(), nullable=False),
        sa.Column("exposure_id", sa.Text(), nullable=False),
        sa.Column("candidate_id", sa.Text(), nullable=True),
        sa.Column("detection_id", sa.Text(), nullable=True),
        sa.Column("object_id", sa.BigInteger(), nullable=True),
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
        sa.Column("score", sa.Double(), nullable=True),
        sa.Column("class", sa.Text(), nullable=True),
        sa.Column("uncertainty", sa.Double(), nullable=True),
        sa.Column("model_name", sa.Text(), nullable=True),
        sa.Column("model_version", sa.Text(), nullable=True),
        sa.Column("features", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("present", sa.Boolean(), server_default="true", nullable=False),
        sa.Column("injected", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("state", sa.Text(), server_default="unseen", nullable=False),
        sa.Column("label_class", sa.Text(), nullable=True),
        sa.Column("labels", sa.Integer(), server_default="0", nullable=False),
        sa.Column("agreement", sa.Double(), nullable=True),
        sa.Column("labelled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("worth", sa.Double(), nullable=True),
        sa.CheckConstraint(
            "state IN ('unseen', 'real', 'bogus', 'unsure', 'disputed')", name=op.f("ck_sources_state")
        ),
        sa.ForeignKeyConstraint(["field_id"], ["fields.id"], name=op.f("fk_sources_field_id")),
        sa.ForeignKeyConstraint(
            ["object_id"], ["objects.id"], name=op.f("fk_sources_object_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sources")),
        sa.UniqueConstraint("key", name=op.f("uq_sources_key")),
    )
    op.create_index(op.f("ix_sources_exposure_id"), "sources", ["exposure_id"], unique=False)
    op.create_index(
        "ix_sources_field_id_night_score", "sources", ["field_id", "night", "score"], unique=False
    )
    op.create_index(op.f("ix_sources_hpx29"), "sources", ["hpx29"], unique=False)
    op.create_index("ix_sources_night_score", "sources", ["night", "score"], unique=False)
    op.create_index(op.f("ix_sources_object_id"), "sources", ["object_id"], unique=False)
    op.create_index(op.f("ix_sources_score"), "sources", ["score"], unique=False)
    op.create_index("ix_sources_state_score", "sources", ["state", "score"], unique=False)
    op.create_index(op.f("ix_sources_worth"), "sources", ["worth"], unique=False)
    op.create_table(
        "tracks",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("object_id", sa.BigInteger(), nullable=False),
        sa.Column("field_id", sa.BigInteger(), nullable=False),
        sa.Column("night", sa.Date(), nullable=False),
        sa.Column("mjd", sa.Double(), nullable=False),
        sa.Column("ra", sa.Double(), nullable=False),
        sa.Column("dec", sa.Double(), nullable=False),
        sa.Column("rate_ra", sa.Double(), nullable=False),
        sa.Column("rate_dec", sa.Double(), nullable=False),
        sa.Column("rms", sa.Double(), nullable=False),
        sa.Column("detections", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["field_id"], ["fields.id"], name=op.f("fk_tracks_field_id")),
        sa.ForeignKeyConstraint(
            ["object_id"], ["objects.id"], name=op.f("fk_tracks_object_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tracks")),
    )
    op.create_index("ix_tracks_field_id_night", "tracks", ["field_id", "night"], unique=False)
    op.create_index(op.f("ix_tracks_object_id"), "tracks", ["object_id"], unique=False)
    op.execute(
        """
        CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION '% are only ever added, never changed or removed', TG_TABLE_NAME
                USING ERRCODE = 'integrity_constraint_violation';
        END $$
        """
    )
    for table in ("validation_events", "audit_log"):
        op.execute(
            f"CREATE TRIGGER only_added BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )
    shared = "field_id, night, exposure_id, mjd, filter, x, y, ra, dec, hpx29, flux, flux_err, snr, mag, mag_err, flags"
    # Numbers that JSON has as null become NULL.
    op.execute(
        f"""
        INSERT INTO sources ({shared}, key, candidate_id, detection_id, score, class, uncertainty,
                             model_name, model_version, features)
        SELECT {shared}, exposure_id || ':' || round(x) || ':' || round(y), nullif(candidate_id, ''),
               detection_id, confidence_score, class, (features->>'uncertainty')::double precision,
               model_name, model_version, features
        FROM detections ON CONFLICT (key) DO NOTHING
        """
    )
    op.execute(
        f"""
        INSERT INTO sources ({shared}, key, candidate_id, features)
        SELECT {shared}, exposure_id || ':' || round(x) || ':' || round(y), candidate_id, features
        FROM candidates c WHERE NOT EXISTS (
            SELECT 1 FROM detections d WHERE d.field_id = c.field_id AND d.night = c.night
            AND d.candidate_id = c.candidate_id)
        ON CONFLICT (key) DO NOTHING
        """
    )


def downgrade() -> None:
    """Remove the tables, those that point at others first."""
    for table in (
        "tracks",
        "sources",
        "model_runs",
        "light_curve_points",
        "objects",
        "training_samples",
        "catalogue_entries",
        "validation_events",
        "user_catalogues",
        "saved_filters",
        "people",
        "name_counters",
        "models",
        "audit_log",
        "api_keys",
    ):
        op.drop_table(table)
    op.execute("DROP FUNCTION refuse_change()")
