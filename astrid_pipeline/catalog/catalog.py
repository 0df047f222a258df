"""The catalogue's operations: fields, a night's rows, cone search, counts.

Every method is one transaction. What PostgreSQL cannot do is a `ServiceError` that says what to do.
"""

from __future__ import annotations

import datetime as dt
import math
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pandas as pd
from sqlalchemy import and_, create_engine, delete, func, insert, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from astrid_pipeline.catalog import migrate, sky
from astrid_pipeline.catalog.association import RADIUS_ARCSEC, RADIUS_PX
from astrid_pipeline.catalog.connections import replace_lost_connections
from astrid_pipeline.catalog.fields import as_field, field_id_of, field_query
from astrid_pipeline.catalog.models import (
    Base,
    Candidate,
    Detection,
    DifferenceRun,
    Observation,
    PreprocessRun,
    Reference,
    SkyField,
    Survey,
    TrainingDataset,
    TrainingRun,
)
from astrid_pipeline.catalog.objects import associate_night
from astrid_pipeline.catalog.review_models import LightCurvePoint, ModelRun, SkyObject, Source, Track
from astrid_pipeline.catalog.rows import finite, keep_model_runs, plain, write_rows
from astrid_pipeline.catalog.sources import keep_sources
from astrid_pipeline.errors import ConfigError, ServiceError

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

    from astrid_pipeline.archives.base import Field

#: Connections that are kept, for changes and for questions.
_CHANGING, _ASKING = 4, 8


class Catalog:
    """The catalogue in a PostgreSQL database; its tables are made or migrated when it is opened.

    Parameters
    ----------
    url:
        SQLAlchemy address of the database.

    Raises
    ------
    ServiceError
        If the database does not answer.
    """

    def __init__(self, url: str) -> None:
        # Opened as they are wanted at once, and kept: most processes have one of each, the vetting page has all.
        self.engine: Engine = create_engine(url, pool_size=_CHANGING, max_overflow=4)
        # Questions need no transaction: without one they cost one way to the server instead of three.
        self._asking = create_engine(url, pool_size=_ASKING, max_overflow=0, isolation_level="AUTOCOMMIT")
        for engine in (self.engine, self._asking):
            replace_lost_connections(engine)
        self._lock = threading.Lock()
        with self._failing("prepare the catalogue"):
            migrate.migrate(self.engine)

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()
        self._asking.dispose()

    def warm(self) -> None:
        """Open all connections that are kept: each takes longer than what it will be asked.

        Raises
        ------
        ServiceError
            If the database does not answer.
        """
        with self._failing("connect"), ExitStack() as open_ones:
            for engine, count in ((self.engine, _CHANGING), (self._asking, _ASKING)):
                for _ in range(count):
                    open_ones.enter_context(engine.connect())

    @contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            cause = str(error.orig) if isinstance(error, DBAPIError) else str(error)
            failure = ServiceError(
                f"cannot {what}: {cause}",
                where=self.engine.url.render_as_string(hide_password=True),
                remedy="check that PostgreSQL is up, then run this again",
            )
            # Data that the tables refuse will be refused again.
            failure.permanent = type(error).__name__ in ("IntegrityError", "DataError", "ProgrammingError")
            raise failure from error

    @contextmanager
    def transaction(self, what: str) -> Iterator[Connection]:
        """Give a connection whose work is kept as a whole, or not at all; `what` is said where it fails."""
        with self._failing(what), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def reading(self, what: str) -> Iterator[Connection]:
        """Give a connection to ask with."""
        with self._failing(what), self._asking.connect() as connection:
            yield connection

    # -- fields ------------------------------------------------------------------------------------------

    def add_field(self, field: Field) -> None:
        """Add a field, or replace what is known of one of the same name."""
        values = {
            "ra": finite(field.ra),
            "dec": finite(field.dec),
            "radius": field.radius,
            "filters": list(field.filters),
            "site_longitude": field.site_longitude,
            "reference": field.reference,
            "poll_minutes": field.poll_minutes,
            "cell": field.cell,
        }
        with self.transaction(f"add field {field.name}") as connection:
            connection.execute(upsert(Survey).values(name=field.archive).on_conflict_do_nothing())
            survey = connection.scalar(select(Survey.id).where(Survey.name == field.archive))
            values["survey_id"] = survey
            connection.execute(
                upsert(SkyField)
                .values(name=field.name, **values)
                .on_conflict_do_update(index_elements=["name"], set_=values)
            )

    def fields(self) -> list[Field]:
        """Return all fields, sorted by name."""
        with self.transaction("list the fields") as connection:
            rows = connection.execute(field_query().order_by(SkyField.name)).all()
        return [as_field(row) for row in rows]

    def field(self, name: str) -> Field:
        """Return a field.

        Raises
        ------
        ConfigError
            If there is none of that name.
        """
        with self.transaction(f"look up field {name}") as connection:
            row = connection.execute(field_query().where(SkyField.name == name)).one_or_none()
        if row is None:
            raise ConfigError("there is no such field", where=name, remedy="add it with `astrid field add`")
        return as_field(row)

    def remove_field(self, name: str) -> None:
        """Remove a field with all its rows; its products stay in the store, people's labels in the catalogue."""
        with self.transaction(f"remove field {name}") as connection:
            field_id = field_id_of(connection, name)
            for model in (
                *(Track, LightCurvePoint, Source, SkyObject, ModelRun),
                *(Candidate, Detection, Observation, DifferenceRun, PreprocessRun, Reference),
            ):
                connection.execute(delete(model).where(model.field_id == field_id))
            connection.execute(delete(SkyField).where(SkyField.id == field_id))

    # -- a night's rows ----------------------------------------------------------------------------------

    def replace_partition(
        self,
        field: str,
        night: str | dt.date,
        *,
        observations: pd.DataFrame,
        candidates: pd.DataFrame,
        detections: pd.DataFrame,
        run_id: str,
        pixel_scale: float | None = None,
    ) -> None:
        """Replace all rows of a field and night in one transaction; earlier runs become `superseded`.

        The night's detections join objects, and what people said of its sources stays (`sources`, `objects`).

        Parameters
        ----------
        field, night:
            The partition; the field must be known.
        observations, candidates, detections:
            The products' tables. Columns without one of their own in the catalogue go to `features`.
        run_id:
            The Dagster run that made them.
        pixel_scale:
            Arcsec a pixel: where pixels are coarse, detections further apart are still of one object.

        Raises
        ------
        ConfigError
            If the field is not known.
        ServiceError
            If PostgreSQL does not answer or refuses a row; the older rows are then untouched.
        """
        date = dt.date.fromisoformat(str(night))
        with self.transaction(f"keep the rows of {field} {date}") as connection:
            field_id = field_id_of(connection, field)
            # Two runs of one partition at once: the second waits, then replaces what the first has written.
            connection.execute(
                text("SELECT pg_advisory_xact_lock(hashtext('astrid-night'), hashtext(:key))"),
                {"key": f"{field}|{date}"},
            )
            shared = {"field_id": field_id, "night": date}
            for model in (Detection, Candidate, Observation):
                connection.execute(delete(model).where(model.field_id == field_id, model.night == date))
            for run in (PreprocessRun, DifferenceRun, ModelRun):
                connection.execute(
                    update(run).where(run.field_id == field_id, run.night == date).values(status="superseded")
                )
            unreadable = int(observations["problem"].notna().sum()) if "problem" in observations else 0
            made = {**shared, "dagster_run_id": run_id, "status": "success", "exposures": len(observations)}
            preprocess = connection.scalar(
                insert(PreprocessRun).values(**made, unreadable=unreadable).returning(PreprocessRun.id)
            )
            difference = connection.scalar(
                insert(DifferenceRun)
                .values(**made, candidates=len(candidates), detections=len(detections))
                .returning(DifferenceRun.id)
            )
            write_rows(connection, Observation, observations, {**shared, "preprocess_run_id": preprocess})
            write_rows(connection, Candidate, candidates, {**shared, "difference_run_id": difference})
            write_rows(connection, Detection, detections, {**shared, "difference_run_id": difference})
            keep_model_runs(connection, detections, {**shared, "difference_run_id": difference}, run_id)
            keep_sources(connection, field_id, field, date, candidates, detections)
            radius = max(RADIUS_ARCSEC, RADIUS_PX * (finite(pixel_scale) or 0.0))
            associate_night(connection, field_id, date, radius)

    def replace_references(self, field: str, references: Iterable[Mapping[str, Any]], run_id: str) -> None:
        """Replace what is known of a field's references.

        Each has `reference_id`, `filter`, `valid_from` (YYYY-MM-DD), `exposure_ids`, and may have `depth` and
        `coverage`.
        """
        with self.transaction(f"keep the references of {field}") as connection:
            field_id = field_id_of(connection, field)
            connection.execute(delete(Reference).where(Reference.field_id == field_id))
            rows = [
                {
                    "field_id": field_id,
                    "reference_id": str(entry["reference_id"]),
                    "filter": str(entry["filter"]),
                    "valid_from": dt.date.fromisoformat(str(entry["valid_from"])),
                    "exposure_ids": [str(name) for name in entry["exposure_ids"]],
                    "depth": finite(entry.get("depth")),
                    "coverage": finite(entry.get("coverage")),
                    "dagster_run_id": run_id,
                }
                for entry in references
            ]
            if rows:
                connection.execute(insert(Reference), rows)

    # -- training ----------------------------------------------------------------------------------------

    def record_dataset(
        self,
        name: str,
        *,
        total_samples: int,
        anomaly_ratio: float | None = None,
        quality_score: float | None = None,
        content_hash: str | None = None,
        collection_params: Mapping[str, Any] | None = None,
        description: str | None = None,
        created_by: str = "astrid",
        status: str = "ready",
    ) -> int:
        """Record a training dataset (again, if it is made again) and return its id."""
        values = {
            "total_samples": int(total_samples),
            "anomaly_ratio": finite(anomaly_ratio),
            "quality_score": finite(quality_score),
            "content_hash": content_hash,
            "collection_params": plain(dict(collection_params or {})),
            "description": description,
            "created_by": created_by,
            "status": status,
        }
        with self.transaction(f"record dataset {name}") as connection:
            identity = connection.scalar(
                upsert(TrainingDataset)
                .values(name=name, **values)
                .on_conflict_do_update(index_elements=["name"], set_={**values, "created_at": func.now()})
                .returning(TrainingDataset.id)
            )
        assert identity is not None  # RETURNING of an upsert that updates gives its row
        return int(identity)

    def record_training(
        self,
        model: str,
        mlflow_run_id: str,
        *,
        status: str,
        dataset: str | None = None,
        model_version: str | None = None,
        dagster_run_id: str | None = None,
        training_params: Mapping[str, Any] | None = None,
        performance_metrics: Mapping[str, Any] | None = None,
        started_at: dt.datetime | None = None,
        completed_at: dt.datetime | None = None,
    ) -> None:
        """Record a training run, or what has become of it since."""
        with self.transaction(f"record the training of {model}") as connection:
            dataset_id = None
            if dataset is not None:
                dataset_id = connection.scalar(
                    select(TrainingDataset.id).where(TrainingDataset.name == dataset)
                )
            values: dict[str, Any] = {
                "dataset_id": dataset_id,
                "model": model,
                "model_version": model_version,
                "dagster_run_id": dagster_run_id,
                "training_params": plain(dict(training_params or {})),
                "performance_metrics": plain(dict(performance_metrics or {})),
                "status": status,
                "completed_at": completed_at,
            }
            if started_at is not None:
                values["started_at"] = started_at
            connection.execute(
                upsert(TrainingRun)
                .values(mlflow_run_id=mlflow_run_id, **values)
                .on_conflict_do_update(index_elements=["mlflow_run_id"], set_=values)
            )

    # -- questions ---------------------------------------------------------------------------------------

    def cone(self, ra: float, dec: float, radius: float, table: str = "detections") -> pd.DataFrame:
        """Return the rows within a cone, nearest first, with `separation` (arcsec).

        Parameters
        ----------
        ra, dec:
            ICRS degrees.
        radius:
            Arcsec.
        table:
            `detections`, `candidates` or `observations` (centres of exposures).
        """
        if not (math.isfinite(ra) and -90 <= dec <= 90 and 0 < radius <= 648000):
            raise ConfigError(
                f"not a cone: ra {ra}, dec {dec}, radius {radius} arcsec", remedy="give degrees, arcsec"
            )
        models: dict[str, Any] = {
            "detections": Detection,
            "candidates": Candidate,
            "observations": Observation,
        }
        model = models[table]
        ranges = sky.cone_ranges(ra % 360.0, dec, radius / 3600.0)
        inside = or_(*(and_(model.hpx29 >= first, model.hpx29 <= last) for first, last in ranges))
        query = (
            select(SkyField.name.label("field"), *model.__table__.c)
            .join(SkyField, SkyField.id == model.field_id)
            .where(inside)
        )
        with self.reading("search the catalogue") as connection:
            result = connection.execute(query)
            # pandas.read_sql takes ten times as long as the search.
            found = pd.DataFrame(result.all(), columns=list(result.keys()))
        found["separation"] = 3600.0 * sky.separation(
            ra, dec, found["ra"].astype(float), found["dec"].astype(float)
        )
        return found[found["separation"] <= radius].sort_values("separation").reset_index(drop=True)

    def status(self) -> dict[str, int]:
        """Return how many rows each table has (superseded runs left out)."""
        with self.transaction("count the rows") as connection:
            counts = {}
            for table in Base.metadata.sorted_tables:
                query = select(func.count()).select_from(table)
                if "status" in table.c and table.name.endswith(("difference_runs", "preprocess_runs")):
                    query = query.where(table.c.status == "success")
                counts[table.name] = int(connection.scalar(query) or 0)
        return counts

    def nights(self, field: str | None = None) -> pd.DataFrame:
        """Return what each field and night holds: field, night, exposures, candidates, detections, run, made."""
        query = (
            select(
                SkyField.name.label("field"),
                DifferenceRun.night,
                DifferenceRun.exposures,
                DifferenceRun.candidates,
                DifferenceRun.detections,
                DifferenceRun.dagster_run_id.label("run_id"),
                DifferenceRun.finished_at,
            )
            .join(SkyField, SkyField.id == DifferenceRun.field_id)
            .where(DifferenceRun.status == "success")
            .order_by(SkyField.name, DifferenceRun.night)
        )
        if field is not None:
            query = query.where(SkyField.name == field)
        with self.reading("list the nights") as connection:
            return pd.read_sql(query, connection)
