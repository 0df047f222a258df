"""The catalogue's tables about what people see and decide: sources, objects, light curves, labels, access.

A *source* is one place on one exposure that a person may be asked about: a detection, or a candidate that the model
passed over. It keeps its id and its `key` when the night is made again, as long as it is found within
`sources.SAME_SOURCE_PX` of where it was. A label is an event that names the key; events are never changed, which the
database itself sees to (a trigger of migration 0002).
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, Integer, UniqueConstraint, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from astrid_pipeline.catalog.models import Base, _id, _now

VERDICTS = ("real", "bogus", "unsure")
#: What may be known of a source once people have looked: `labels.consensus_of` says how it comes about.
STATES = ("unseen", *VERDICTS, "disputed")
#: `injected` ones are no objects of the sky: what was put in shows as one, or it would stand out (`catalog.gold`).
OBJECT_KINDS = ("stationary", "moving", "injected")
#: What is known of a source that was put in.
TRUTHS = ("real", "bogus")


def _one_of(column: str, values: tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(value) for value in values)})"


class SkyObject(Base):
    """Something in the sky that detections of several exposures, filters and nights belong to."""

    __tablename__ = "objects"
    __table_args__ = (CheckConstraint(_one_of("kind", OBJECT_KINDS), name="kind"),)
    id: Mapped[int] = _id()
    name: Mapped[str] = mapped_column(unique=True)
    field_id: Mapped[int] = mapped_column(ForeignKey("fields.id"), index=True)
    kind: Mapped[str]
    ra: Mapped[float]
    dec: Mapped[float]
    hpx29: Mapped[int] = mapped_column(BigInteger, index=True)
    detections: Mapped[int] = mapped_column(Integer)
    nights: Mapped[int] = mapped_column(Integer)
    first_mjd: Mapped[float]
    last_mjd: Mapped[float] = mapped_column(index=True)
    best_score: Mapped[float | None]
    class_name: Mapped[str | None] = mapped_column("class")
    created_at: Mapped[dt.datetime] = _now()


class NameCounter(Base):
    """The next free number of the object names of a year; numbers are not used twice."""

    __tablename__ = "name_counters"
    year: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    next: Mapped[int] = mapped_column(BigInteger)


class Track(Base):
    """The straight path of a moving object over one night: position at `mjd`, rates in arcsec an hour."""

    __tablename__ = "tracks"
    __table_args__ = (Index("ix_tracks_field_id_night", "field_id", "night"),)
    id: Mapped[int] = _id()
    object_id: Mapped[int] = mapped_column(ForeignKey("objects.id", ondelete="CASCADE"), index=True)
    field_id: Mapped[int] = mapped_column(ForeignKey("fields.id"))
    night: Mapped[dt.date]
    mjd: Mapped[float]
    ra: Mapped[float]
    dec: Mapped[float]
    rate_ra: Mapped[float]
    rate_dec: Mapped[float]
    rms: Mapped[float]
    detections: Mapped[int] = mapped_column(Integer)


class LightCurvePoint(Base):
    """Forced PSF photometry of an object on one difference image, in units of its science frame."""

    __tablename__ = "light_curve_points"
    __table_args__ = (
        UniqueConstraint("object_id", "exposure_id"),
        Index("ix_light_curve_points_field_id_night", "field_id", "night"),
    )
    id: Mapped[int] = _id()
    object_id: Mapped[int] = mapped_column(ForeignKey("objects.id", ondelete="CASCADE"))
    field_id: Mapped[int] = mapped_column(ForeignKey("fields.id"))
    night: Mapped[dt.date]
    exposure_id: Mapped[str]
    mjd: Mapped[float]
    filter: Mapped[str | None]
    flux: Mapped[float]
    flux_err: Mapped[float]
    snr: Mapped[float]
    upper_limit: Mapped[float]
    zero_point: Mapped[float | None]
    mag: Mapped[float | None]
    mag_err: Mapped[float | None]
    mag_limit: Mapped[float | None]
    flags: Mapped[int] = mapped_column(Integer)


class Source(Base):
    """One place on one exposure that a person may be asked about."""

    __tablename__ = "sources"
    __table_args__ = (
        CheckConstraint(_one_of("state", STATES), name="state"),
        CheckConstraint(f"truth IS NULL OR {_one_of('truth', TRUTHS)}", name="truth"),
        Index("ix_sources_field_id_night_score", "field_id", "night", "score"),
        Index("ix_sources_night_score", "night", "score"),
        Index("ix_sources_state_score", "state", "score"),
    )
    id: Mapped[int] = _id()
    key: Mapped[str] = mapped_column(unique=True)
    field_id: Mapped[int] = mapped_column(ForeignKey("fields.id"))
    night: Mapped[dt.date]
    exposure_id: Mapped[str] = mapped_column(index=True)
    candidate_id: Mapped[str | None]
    detection_id: Mapped[str | None]
    object_id: Mapped[int | None] = mapped_column(ForeignKey("objects.id", ondelete="SET NULL"), index=True)
    mjd: Mapped[float]
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
    #: Null where the model passed the candidate over.
    score: Mapped[float | None] = mapped_column(index=True)
    class_name: Mapped[str | None] = mapped_column("class")
    uncertainty: Mapped[float | None]
    model_name: Mapped[str | None]
    model_version: Mapped[str | None]
    features: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default="{}")
    #: False where the night was made again and this, which people have labelled, was not found any more.
    present: Mapped[bool] = mapped_column(server_default="true")
    #: True for what was put in to measure the scanners: the right answer is known (`truth`), and told after the label.
    injected: Mapped[bool] = mapped_column(server_default="false")
    truth: Mapped[str | None]
    state: Mapped[str] = mapped_column(server_default="unseen")
    label_class: Mapped[str | None]
    labels: Mapped[int] = mapped_column(Integer, server_default="0")
    agreement: Mapped[float | None]
    labelled_at: Mapped[dt.datetime | None]
    #: What a label of this would teach (`learning` decides); the order of the active queue.
    worth: Mapped[float | None] = mapped_column(index=True)


class ValidationEvent(Base):
    """One decision of one person, or its withdrawal (`undoes`). Complete in itself, and never changed."""

    __tablename__ = "validation_events"
    __table_args__ = (
        CheckConstraint(f"verdict IS NULL OR {_one_of('verdict', VERDICTS)}", name="verdict"),
        CheckConstraint("(verdict IS NULL) <> (undoes IS NULL)", name="undoes"),
        CheckConstraint("confidence IS NULL OR confidence BETWEEN 0 AND 1", name="confidence"),
        CheckConstraint(f"truth IS NULL OR {_one_of('truth', TRUTHS)}", name="truth"),
        Index("ix_validation_events_who_at", "who", "at"),
    )
    id: Mapped[int] = _id()
    #: Made by the client; the same one sent twice is kept once.
    token: Mapped[str] = mapped_column(unique=True)
    source_key: Mapped[str] = mapped_column(index=True)
    field: Mapped[str]
    night: Mapped[dt.date]
    exposure_id: Mapped[str] = mapped_column(index=True)
    x: Mapped[float]
    y: Mapped[float]
    ra: Mapped[float | None]
    dec: Mapped[float | None]
    injected: Mapped[bool] = mapped_column(server_default="false")
    truth: Mapped[str | None]
    object_name: Mapped[str | None] = mapped_column(index=True)
    who: Mapped[str]
    at: Mapped[dt.datetime] = _now()
    verdict: Mapped[str | None]
    class_name: Mapped[str | None] = mapped_column("class")
    confidence: Mapped[float | None]
    note: Mapped[str | None]
    score: Mapped[float | None]
    model_name: Mapped[str | None]
    model_version: Mapped[str | None]
    undoes: Mapped[int | None] = mapped_column(BigInteger, unique=True)


class SavedFilter(Base):
    """A person's way to look at the queue, by name."""

    __tablename__ = "saved_filters"
    __table_args__ = (UniqueConstraint("who", "name"),)
    id: Mapped[int] = _id()
    who: Mapped[str]
    name: Mapped[str]
    query: Mapped[dict[str, Any]] = mapped_column(JSONB)
    created_at: Mapped[dt.datetime] = _now()


class UserCatalogue(Base):
    """A catalogue that a user handed over to match against."""

    __tablename__ = "user_catalogues"
    __table_args__ = (
        CheckConstraint(_one_of("kind", ("galaxy", "star", "variable", "transient")), name="kind"),
    )
    id: Mapped[int] = _id()
    name: Mapped[str] = mapped_column(unique=True)
    kind: Mapped[str]
    entries: Mapped[int] = mapped_column(Integer)
    sha256: Mapped[str]
    created_at: Mapped[dt.datetime] = _now()


class CatalogueEntry(Base):
    """One row of a user's catalogue."""

    __tablename__ = "catalogue_entries"
    id: Mapped[int] = _id()
    catalogue_id: Mapped[int] = mapped_column(
        ForeignKey("user_catalogues.id", ondelete="CASCADE"), index=True
    )
    name: Mapped[str]
    ra: Mapped[float]
    dec: Mapped[float]
    hpx29: Mapped[int] = mapped_column(BigInteger, index=True)
    mag: Mapped[float | None]
    properties: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default="{}")


class ModelVersion(Base):
    """A version of a detector that has judged something."""

    __tablename__ = "models"
    __table_args__ = (UniqueConstraint("name", "version"),)
    id: Mapped[int] = _id()
    name: Mapped[str]
    version: Mapped[str]
    first_used_at: Mapped[dt.datetime] = _now()


class ModelRun(Base):
    """A model's judgement of a field and night."""

    __tablename__ = "model_runs"
    __table_args__ = (Index("ix_model_runs_field_id_night", "field_id", "night"),)
    id: Mapped[int] = _id()
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"), index=True)
    difference_run_id: Mapped[int] = mapped_column(ForeignKey("difference_runs.id"), index=True)
    field_id: Mapped[int] = mapped_column(ForeignKey("fields.id"))
    night: Mapped[dt.date]
    dagster_run_id: Mapped[str]
    status: Mapped[str]
    detections: Mapped[int] = mapped_column(Integer)
    finished_at: Mapped[dt.datetime] = _now()


class TrainingSample(Base):
    """One labelled source of a training dataset."""

    __tablename__ = "training_samples"
    __table_args__ = (UniqueConstraint("dataset_id", "source_key"),)
    id: Mapped[int] = _id()
    dataset_id: Mapped[int] = mapped_column(ForeignKey("training_datasets.id", ondelete="CASCADE"))
    source_key: Mapped[str]
    detection_id: Mapped[str | None]
    image_path: Mapped[str]
    mask_path: Mapped[str]
    is_anomaly: Mapped[bool]
    anomaly_type: Mapped[str | None]
    confidence: Mapped[float | None]
    reviewer_notes: Mapped[str | None]
    split: Mapped[str]
    about: Mapped[dict[str, Any]] = mapped_column("metadata", JSONB, server_default="{}")


class Person(Base):
    """Somebody who may sign in to the page."""

    __tablename__ = "people"
    id: Mapped[int] = _id()
    name: Mapped[str] = mapped_column(unique=True)
    password_hash: Mapped[str]
    scopes: Mapped[list[str]]
    created_at: Mapped[dt.datetime] = _now()
    disabled_at: Mapped[dt.datetime | None]


class ApiKey(Base):
    """A key to the API: only its hash is kept."""

    __tablename__ = "api_keys"
    id: Mapped[int] = _id()
    prefix: Mapped[str] = mapped_column(unique=True)
    hash: Mapped[str]
    name: Mapped[str]
    scopes: Mapped[list[str]]
    created_at: Mapped[dt.datetime] = _now()
    last_used_at: Mapped[dt.datetime | None]
    revoked_at: Mapped[dt.datetime | None]


class AuditEntry(Base):
    """Who did what that changes something, beside the labels."""

    __tablename__ = "audit_log"
    id: Mapped[int] = _id()
    at: Mapped[dt.datetime] = mapped_column(server_default=func.now(), index=True)
    who: Mapped[str]
    action: Mapped[str]
    what: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default="{}")
