"""The catalogue on a real PostgreSQL: migrations, a night made again, races, cones."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sqlalchemy import create_engine, inspect, text

from astrid_pipeline.archives.base import OBSERVATIONS, Field
from astrid_pipeline.catalog import Catalog, migrate, sky
from astrid_pipeline.catalog.models import Base
from astrid_pipeline.errors import ConfigError, ServiceError
from astrid_pipeline.resources.catalogue import CatalogueResource
from astrid_pipeline.services import postgres
from astrid_pipeline.settings import Settings
from astrid_pipeline_tests.services.homes import home

pytestmark = pytest.mark.postgres

NIGHT = "2026-01-02"


@pytest.fixture(scope="module")
def server() -> Iterator[Settings]:
    with home() as made:
        yield made


@pytest.fixture(scope="module")
def catalog(server: Settings) -> Iterator[Catalog]:
    opened = Catalog(postgres.database_url("astrid", server))
    opened.add_field(Field("m31", 10.68, 41.27, 0.5, ("g", "r")))
    yield opened
    opened.close()


def sources(n: int, seed: int = 0, **values: Any) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "candidate_id": [f"c{seed}-{i}" for i in range(n)],
            "exposure_id": "e1",
            "x": rng.uniform(0, 1000, n),
            "y": rng.uniform(0, 1000, n),
            "ra": 10.68 + rng.uniform(-0.1, 0.1, n),
            "dec": 41.27 + rng.uniform(-0.1, 0.1, n),
            "mjd": 60000.0,
            "filter": "g",
            "flux": np.float32(3.5),
            "flux_err": np.nan,
            "snr": rng.uniform(5, 50, n).astype(np.float32),
            "flags": np.int32(6),
            "dipole": 0.25,
            "flag_names": "SATURATED",
            **values,
        }
    )


def observations(n: int = 2, problem: str | None = None) -> pd.DataFrame:
    return OBSERVATIONS.conform(
        pd.DataFrame(
            {
                "exposure_id": [f"e{i}" for i in range(n)],
                "field": "m31",
                "kind": "light",
                "mjd": 60000.0 + np.arange(n),
                "night": NIGHT,
                "filter": "g",
                "instrument": "camera",
                "exposure": 30.0,
                "ra": [10.68] * (n - 1) + [np.nan],
                "dec": [41.27] * (n - 1) + [np.nan],
                "size": 100,
                "problem": [None] * (n - 1) + [problem],
            }
        )
    )


def detections(candidates: pd.DataFrame) -> pd.DataFrame:
    return candidates.assign(
        detection_id="d" + candidates.candidate_id,
        score=0.9,
        model_name="unet",
        model_version="1",
        **{"class": "point"},
    )


def put(catalog: Catalog, n: int, seed: int = 0, run: str = "run", field: str = "m31", **values: Any) -> None:
    found = sources(n, seed, **values)
    catalog.replace_partition(
        field,
        NIGHT,
        observations=observations(),
        candidates=found,
        detections=detections(found.head(n // 2)),
        run_id=run,
    )


def test_migrations_go_forward_and_back(server: Settings) -> None:
    engine = create_engine(
        postgres.database_url("astrid", server.model_copy(update={"database_prefix": "mig_"}))
    )
    try:
        assert migrate.current(engine) is None
        migrate.migrate(engine)
        assert migrate.current(engine) == migrate.head()
        assert set(inspect(engine).get_table_names()) == {*Base.metadata.tables, "alembic_version"}
        migrate.migrate(engine)
        migrate.revert(engine, "base")
        assert set(inspect(engine).get_table_names()) == {"alembic_version"}
        migrate.migrate(engine)
        assert migrate.current(engine) == migrate.head()
    finally:
        engine.dispose()


def test_the_migrations_make_what_the_models_say(catalog: Catalog) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    with catalog.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_processes_that_open_it_at_once(server: Settings) -> None:
    url = postgres.database_url("astrid", server.model_copy(update={"database_prefix": "race_"}))
    start, failures = threading.Barrier(6), []

    def work() -> None:
        start.wait()
        try:
            Catalog(url).close()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_an_interrupted_migration_leaves_nothing(server: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from alembic import command

    engine = create_engine(
        postgres.database_url("astrid", server.model_copy(update={"database_prefix": "half_"}))
    )
    upgrade = command.upgrade

    def cut_short(*arguments: Any) -> None:
        upgrade(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "upgrade", cut_short)
    with pytest.raises(KeyboardInterrupt):
        migrate.migrate(engine)
    assert inspect(engine).get_table_names() == []
    engine.dispose()


def test_fields_come_back_as_they_went(catalog: Catalog) -> None:
    moved = Field("wanders", math.nan, math.nan, 0.3, (), "folder:/data/night one", -70.8, "exposures:a,b")
    catalog.add_field(moved)
    found = catalog.field("wanders")
    assert math.isnan(found.ra)
    assert math.isnan(found.dec)
    assert (found.archive, found.site_longitude, found.reference) == (
        moved.archive,
        moved.site_longitude,
        moved.reference,
    )
    catalog.add_field(Field("wanders", 1.0, 2.0, 0.4, ("r",)))
    assert catalog.field("wanders") == Field("wanders", 1.0, 2.0, 0.4, ("r",))
    assert [field.name for field in catalog.fields()] == ["m31", "wanders"]
    catalog.remove_field("wanders")
    with pytest.raises(ConfigError, match="astrid field add"):
        catalog.field("wanders")
    with pytest.raises(ConfigError, match="no such field"):
        catalog.field("'; DROP TABLE fields; --")
    assert catalog.field("m31").filters == ("g", "r")


def test_a_night_made_again_replaces_its_rows_only(catalog: Catalog) -> None:
    catalog.add_field(Field("other", 50.0, 10.0, 1.0))
    put(catalog, 40, seed=9, field="other", run="other-run")
    put(catalog, 20, seed=1, run="first")
    put(catalog, 10, seed=2, run="second")
    nights = catalog.nights("m31")
    assert len(nights) == 1
    row = nights.iloc[0]
    assert (row.exposures, row.candidates, row.detections, row.run_id) == (2, 10, 5, "second")
    assert catalog.nights("other").iloc[0].candidates == 40
    with catalog.engine.connect() as connection:
        statuses = connection.execute(
            text(
                "SELECT dagster_run_id, status FROM difference_runs JOIN fields f ON f.id = field_id"
                " WHERE f.name = 'm31' ORDER BY 1"
            )
        ).all()
        names = connection.execute(
            text(
                "SELECT count(*) FROM candidates JOIN fields f ON f.id = field_id"
                " WHERE f.name = 'm31' AND candidate_id LIKE 'c1-%'"
            )
        ).scalar()
    assert [tuple(row) for row in statuses] == [("first", "superseded"), ("second", "success")]
    assert names == 0
    catalog.remove_field("other")


def test_columns_are_kept_and_nothing_is_not_a_number(catalog: Catalog) -> None:
    put(catalog, 4, seed=3)
    found = catalog.cone(10.68, 41.27, 3600, "candidates")
    assert len(found) == 4
    assert found.flux_err.isna().all()
    assert set(found["flags"]) == {6}
    assert found.features[0] == {"dipole": 0.25, "flag_names": "SATURATED"}
    kept = catalog.cone(10.68, 41.27, 3600, "detections")
    assert set(kept["class"]) == {"point"}
    assert set(kept.confidence_score) == {0.9}
    assert set(kept.model_version) == {"1"}
    assert not kept.is_validated.any()
    pointed = catalog.cone(10.68, 41.27, 10, "observations")
    assert list(pointed.exposure_id) == ["e0"], "an exposure of unknown position is nowhere"
    with catalog.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM observations WHERE ra = 'NaN'")).scalar() == 0


def test_rows_that_are_refused_leave_the_old_ones(catalog: Catalog) -> None:
    put(catalog, 6, seed=4, run="good")
    twice = sources(6, 5)
    twice["candidate_id"] = "same"
    with pytest.raises(ServiceError, match="keep the rows of m31") as caught:
        catalog.replace_partition(
            "m31",
            NIGHT,
            observations=observations(),
            candidates=twice,
            detections=detections(twice),
            run_id="bad",
        )
    assert caught.value.permanent
    assert catalog.nights("m31").iloc[0].run_id == "good"
    assert len(catalog.cone(10.68, 41.27, 3600, "candidates")) == 6
    with pytest.raises(ConfigError, match="no such field"):
        put(catalog, 1, field="nowhere")


def test_two_runs_of_one_night_at_once(catalog: Catalog) -> None:
    start, failures = threading.Barrier(4), []

    def work(seed: int) -> None:
        start.wait()
        try:
            put(catalog, 10 * seed, seed=seed, run=f"run {seed}")
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    (row,) = list(catalog.nights("m31").itertuples())
    found = catalog.cone(10.68, 41.27, 3600, "candidates")
    assert len(found) == row.candidates
    assert len({name.split("-")[0] for name in found.candidate_id}) == 1, "rows of two runs are mixed"


def test_an_empty_night(catalog: Catalog) -> None:
    empty = pd.DataFrame()
    catalog.replace_partition(
        "m31",
        NIGHT,
        observations=observations(1, "truncated"),
        candidates=empty,
        detections=empty,
        run_id="empty",
    )
    assert catalog.nights("m31").iloc[0].candidates == 0
    with catalog.engine.connect() as connection:
        unreadable = connection.execute(
            text("SELECT unreadable FROM preprocess_runs WHERE dagster_run_id = 'empty'")
        ).scalar()
    assert unreadable == 1


def test_references_and_training(catalog: Catalog) -> None:
    version = {
        "reference_id": "m31-g-1",
        "filter": "g",
        "valid_from": "2026-01-03",
        "exposure_ids": ["a", "b"],
    }
    catalog.replace_references(
        "m31", [version, {**version, "reference_id": "m31-g-2", "depth": math.nan}], "run"
    )
    catalog.replace_references("m31", [{**version, "depth": 21.5, "coverage": 0.97}], "run 2")
    assert catalog.status()["references"] == 1
    first = catalog.record_dataset(
        "night one", total_samples=10, anomaly_ratio=0.4, collection_params={"n": np.int64(3)}
    )
    assert catalog.record_dataset("night one", total_samples=12, anomaly_ratio=math.nan) == first
    catalog.record_training("astrid-detector", "mlflow-1", status="running", dataset="night one")
    catalog.record_training(
        "astrid-detector",
        "mlflow-1",
        status="finished",
        dataset="night one",
        performance_metrics={"ap": 0.9, "x": math.inf},
    )
    counts = catalog.status()
    assert (counts["training_datasets"], counts["training_runs"]) == (1, 1)
    with catalog.engine.connect() as connection:
        row = connection.execute(
            text("SELECT status, performance_metrics, dataset_id FROM training_runs")
        ).one()
    assert tuple(row) == ("finished", {"ap": 0.9, "x": None}, first)


def test_a_server_that_goes_away_is_said(tmp_path: Any) -> None:
    with home() as own:
        opened = Catalog(postgres.database_url("astrid", own))
        opened.add_field(Field("m31", 10.0, 41.0, 0.5))
        postgres.stop(own)
        with pytest.raises(ServiceError, match="PostgreSQL is up") as caught:
            opened.fields()
        assert not caught.value.permanent
        # The connections that died with the server are replaced.
        postgres.start(own)
        assert [field.name for field in opened.fields()] == ["m31"]
        opened.close()


def test_the_resource_opens_one_catalogue_a_database(catalog: Catalog) -> None:
    url = catalog.engine.url.render_as_string(hide_password=False)
    assert CatalogueResource(url=url).open() is CatalogueResource(url=url).open()


def test_cones_in_the_database_are_those_of_a_plain_search(catalog: Catalog) -> None:
    rng = np.random.default_rng(6)
    n = 3000
    ra = np.concatenate([rng.uniform(-0.02, 0.02, n // 2) % 360, rng.uniform(0, 360, n // 2)])
    dec = np.concatenate([rng.uniform(-0.02, 0.02, n // 2), rng.uniform(89.95, 90, n // 2)])
    put(catalog, n, seed=7, ra=ra, dec=dec)
    for place, radius in [
        ((0.0, 0.0), 20.0),
        ((359.999, 0.001), 15.0),
        ((123.0, 90.0), 60.0),
        ((0.0, 0.0), 0.01),
    ]:
        found = catalog.cone(*place, radius, "candidates")
        separation = 3600 * sky.separation(*place, ra, dec)
        assert sorted(found.candidate_id) == sorted(f"c7-{i}" for i in np.flatnonzero(separation <= radius))
        assert found.separation.is_monotonic_increasing
    assert len(catalog.cone(0.0, 0.0, 20.0, "candidates")) > 5
    with pytest.raises(ConfigError, match="not a cone"):
        catalog.cone(0.0, 91.0, 5.0)


def test_cone_searches_use_the_index(catalog: Catalog) -> None:
    put(catalog, 3000, seed=8)
    with catalog.engine.connect() as connection:
        connection.execute(text("ANALYZE candidates"))
        ranges = sky.cone_ranges(10.68, 41.27, 2 / 3600)
        where = " OR ".join(f"hpx29 BETWEEN {first} AND {last}" for first, last in ranges)
        plan = "\n".join(
            row[0] for row in connection.execute(text(f"EXPLAIN SELECT * FROM candidates WHERE {where}"))
        )
    assert "ix_candidates_hpx29" in plan


def test_a_field_keeps_its_pace_its_cell_and_its_policy(catalog):
    from astrid_pipeline.archives.base import Field

    field = Field("tile-3.100", 10.0, 20.0, 5.0, poll_minutes=90, cell="3/100", reference="auto+ps1")
    catalog.add_field(field)
    assert catalog.field("tile-3.100") == field
    catalog.remove_field("tile-3.100")
