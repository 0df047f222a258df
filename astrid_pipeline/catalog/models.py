"""The catalogue's tables (SQLAlchemy 2): what is remembered across nights.

Sky positions are ICRS degrees, times MJD (UTC), fluxes in the units of the science frame. `hpx29` is the nested
HEALPix index of order 29 (0.4 milliarcsec); a plain btree on it answers cone searches.

Rows of a field and night are replaced as a whole when the night is made again, so nothing that must survive may
point at their ids: it points at the stable names (`exposure_id`, `candidate_id`, `detection_id`).
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Date,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Text,
    UniqueConstraint,
    func,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Base of all tables; constraint names are fixed, so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012  # SQLAlchemy reads it as a class attribute
        str: Text,
        float: Double,
        bool: Boolean,
        dt.datetime: DateTime(timezone=True),
        dt.date: Date,
        dict[str, Any]: JSONB,
        list[str]: ARRAY(Text),
    }


def _id() -> Mapped[int]:
    return mapped_column(BigInteger, primary_key=True)


def _now() -> Mapped[dt.datetime]:
    return mapped_column(DateTime(timezone=True), server_default=func.now())


class Survey(Base):
    """A source of exposures: an archive, by its `open_archive` text."""

    __tablename__ = "surveys"
    id: Mapped[int] = _id()
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[dt.datetime] = _now()


class SkyField(Base):
    """A patch of sky that is watched (`archives.base.Field`)."""

    __tablename__ = "fields"
    id: Mapped[int] = _id()
    survey_id: Mapped[int] = mapped_column(ForeignKey("surveys.id"), index=True)
    name: Mapped[str] = mapped_column(unique=True)
    ra: Mapped[float | None]
    dec: Mapped[float | None]
    radius: Mapped[float]
    filters: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default="{}")
    site_longitude: Mapped[float | None]
    reference: Mapped[str] = mapped_column(server_default="auto")
    poll_minutes: Mapped[float | None]
    cell: Mapped[str] = mapped_column(server_default="")
    created_at: Mapped[dt.datetime] = _now()


class _OfNight:
    """What all rows of a field and night share."""

    id: Mapped[int] = _id()
    field_id: Mapped[int] = mapped_column(ForeignKey("fields.id"))
    night: Mapped[dt.date]


class _Run(_OfNight):
    """One making of a field and night; an older one is `superseded` by the next."""

    dagster_run_id: Mapped[str]
    status: Mapped[str]
    exposures: Mapped[int] = mapped_column(Integer)
    finished_at: Mapped[dt.datetime] = _now()


class PreprocessRun(_Run, Base):
    """The making of a night's calibrated frames."""

    __tablename__ = "preprocess_runs"
    __table_args__ = (
        Index("ix_preprocess_runs_field_id_night", "field_id", "night"),
        CheckConstraint("status IN ('success', 'superseded')", name="status"),
    )
    unreadable: Mapped[int] = mapped_column(Integer)


class DifferenceRun(_Run, Base):
    """The making of a night's difference images, candidates and detections."""

    __tablename__ = "difference_runs"
    __table_args__ = (
        Index("ix_difference_runs_field_id_night", "field_id", "night"),
        CheckConstraint("status IN ('success', 'superseded')", name="status"),
    )
    candidates: Mapped[int] = mapped_column(Integer)
    detections: Mapped[int] = mapped_column(Integer)


class Observation(_OfNight, Base):
    """One exposure of a field, as the archive gave it."""

    __tablename__ = "observations"
    __table_args__ = (UniqueConstraint("field_id", "night", "exposure_id"),)
    preprocess_run_id: Mapped[int] = mapped_column(ForeignKey("preprocess_runs.id"), index=True)
    exposure_id: Mapped[str] = mapped_column(index=True)
    kind: Mapped[str]
    mjd: Mapped[float | None] = mapped_column(index=True)
    filter: Mapped[str | None]
    instrument: Mapped[str | None]
    exposure: Mapped[float | None]
    ra: Mapped[float | None]
    dec: Mapped[float | None]
    hpx29: Mapped[int | None] = mapped_column(BigInteger, index=True)
    url: Mapped[str | None]
    path: Mapped[str | None]
    size: Mapped[int | None] = mapped_column(BigInteger)
    sha256: Mapped[str | None]
    problem: Mapped[str | None]


class Reference(Base):
    """A version of a field's reference image in one filter, valid from a night on."""

    __tablename__ = "references"
    __table_args__ = (UniqueConstraint("field_id", "reference_id"),)
    id: Mapped[int] = _id()
    field_id: Mapped[int] = mapped_column(ForeignKey("fields.id"))
    reference_id: Mapped[str]
    filter: Mapped[str]
    valid_from: Mapped[dt.date]
    exposure_ids: Mapped[list[str]]
    depth: Mapped[float | None]
    coverage: Mapped[float | None]
    dagster_run_id: Mapped[str]
    created_at: Mapped[dt.datetime] = _now()


class _Source(_OfNight):
    """A place on a difference image where something may have changed."""

    difference_run_id: Mapped[int] = mapped_column(ForeignKey("difference_runs.id"), index=True)
    exposure_id: Mapped[str] = mapped_column(index=True)
    mjd: Mapped[float] = mapped_column(index=True)
    filter: Mapped[str | None]
    x: Mapped[float]
    y: Mapped[float]
    ra: Mapped[float | None]
    dec: Mapped[float | None]
    hpx29: Mapped[int | None] = mapped_column(BigInteger, index=True)
    flux: Mapped[float | None]
    flux_err: Mapped[float | None]
    snr: Mapped[float | None]
    mag: Mapped[float | None]
    mag_err: Mapped[float | None]
    flags: Mapped[int] = mapped_column(Integer, server_default="0")
    #: The columns of the product's table that have no column of their own here.
    features: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default="{}")


class Candidate(_Source, Base):
    """Every peak of the score image above the threshold."""

    __tablename__ = "candidates"
    __table_args__ = (UniqueConstraint("field_id", "night", "candidate_id"),)
    candidate_id: Mapped[str] = mapped_column(index=True)


class Detection(_Source, Base):
    """A candidate that the model takes for real."""

    __tablename__ = "detections"
    __table_args__ = (UniqueConstraint("field_id", "night", "detection_id"),)
    detection_id: Mapped[str] = mapped_column(index=True)
    candidate_id: Mapped[str | None] = mapped_column(index=True)
    confidence_score: Mapped[float | None] = mapped_column(index=True)
    class_name: Mapped[str | None] = mapped_column("class")
    model_name: Mapped[str | None]
    model_version: Mapped[str | None]
    is_validated: Mapped[bool] = mapped_column(server_default="false")


class TrainingDataset(Base):
    """A named, immutable collection of labelled samples."""

    __tablename__ = "training_datasets"
    id: Mapped[int] = _id()
    name: Mapped[str] = mapped_column(unique=True)
    description: Mapped[str | None]
    collection_params: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default="{}")
    total_samples: Mapped[int] = mapped_column(Integer)
    anomaly_ratio: Mapped[float | None]
    quality_score: Mapped[float | None]
    content_hash: Mapped[str | None]
    created_at: Mapped[dt.datetime] = _now()
    created_by: Mapped[str]
    status: Mapped[str]


class TrainingRun(Base):
    """One training of a model on a dataset."""

    __tablename__ = "training_runs"
    id: Mapped[int] = _id()
    dataset_id: Mapped[int | None] = mapped_column(ForeignKey("training_datasets.id"), index=True)
    model: Mapped[str]
    model_version: Mapped[str | None]
    mlflow_run_id: Mapped[str] = mapped_column(unique=True)
    dagster_run_id: Mapped[str | None]
    training_params: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default="{}")
    performance_metrics: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default="{}")
    status: Mapped[str]
    started_at: Mapped[dt.datetime] = _now()
    completed_at: Mapped[dt.datetime | None]
