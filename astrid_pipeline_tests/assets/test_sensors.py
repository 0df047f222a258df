"""The sensors' ticks: what they ask for, that they ask once, and what they say."""

from __future__ import annotations

import json
from dataclasses import replace

import dagster as dg
import pytest

from astrid_pipeline import sensors
from astrid_pipeline.archives.base import Field
from astrid_pipeline.settings import reset_settings
from astrid_pipeline_tests.archive_server import ArchiveServer, Holdings
from astrid_pipeline_tests.archives.some_fits import TAN, write
from astrid_pipeline_tests.night.test_plan import Archive, Made

RA, DEC = 10.68, 41.27


class Opens:
    """A resource whose `open` gives the same thing each time."""

    def __init__(self, what) -> None:
        self.what = what

    def open(self):
        return self.what


class Catalogue:
    def __init__(self, *fields: Field) -> None:
        self.known = {field.name: field for field in fields}

    def fields(self) -> list[Field]:
        return list(self.known.values())

    def add_field(self, field: Field) -> None:
        self.known[field.name] = field


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as made:
        yield made


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ASTRID_HOME", str(tmp_path / "home"))
    reset_settings()
    yield tmp_path / "home"
    reset_settings()


@pytest.fixture
def server():
    holdings = Holdings()
    for night in range(3):
        for number in range(2):
            holdings.add(f"ib{night}{number}q", RA, DEC, 59000.2 + night + 0.01 * number, "F160W")
    with ArchiveServer(holdings) as started:
        yield started


def tick(instance, catalogue, products=None, cursor=None) -> dg.SensorResult:
    products = products or Made(Archive({}, raw=False))
    context = dg.build_sensor_context(
        instance=instance,
        cursor=cursor,
        resources={"catalogue": Opens(catalogue), "products": Opens(products)},
    )
    return sensors.new_observations(context)


def keys(result: dg.SensorResult) -> list[str]:
    return [request.run_key for request in result.run_requests or []]


def said(result: dg.SensorResult) -> str:
    return result.skip_reason.skip_message


def field_at(server: ArchiveServer, name: str = "m31", **more) -> Field:
    return Field(name, RA, DEC, 0.1, archive=f"mast:HST?server={server.url}", **more)


def run_of(instance, job: str, key: str, status: dg.DagsterRunStatus) -> dg.DagsterRun:
    from dagster._core.test_utils import create_run_for_test

    tags = {"dagster/run_key": key, "dagster/partition": key.partition(":")[2].partition("@")[0]}
    return create_run_for_test(instance, job_name=job, status=status, tags=tags)


def test_new_exposures_are_asked_for_once(instance, server):
    catalogue = Catalogue(field_at(server))
    first = tick(instance, catalogue)
    assert sorted(k.partition("@")[0] for k in keys(first)) == [
        "calibrate_night:m31|2020-05-31",
        "calibrate_night:m31|2020-06-01",
    ]  # the founding nights, three frames
    added = {r.partitions_def_name: r.partition_keys for r in first.dynamic_partitions_requests}
    assert added == {"fields": ["m31"], "instruments": ["WFC3/IR"]}

    # The daemon was killed in mid-tick: the cursor was not kept, and the same keys are asked for.
    assert keys(tick(instance, catalogue)) == keys(first)
    # It was killed after half of the runs: those are there.
    run_of(instance, "calibrate_night", keys(first)[0], dg.DagsterRunStatus.STARTED)
    assert keys(tick(instance, catalogue)) == keys(first)[1:]
    run_of(instance, "calibrate_night", keys(first)[1], dg.DagsterRunStatus.STARTED)
    second = tick(instance, catalogue, cursor=first.cursor)
    assert keys(second) == []
    assert "nothing new in 1 field" in said(second)
    assert "next poll: m31 at" in said(second)
    asked = server.count("COUNT_BIG")
    tick(instance, catalogue, cursor=second.cursor)
    assert server.count("COUNT_BIG") == asked  # its pace is an hour


def test_a_new_exposure_remakes_its_night_alone(instance, server):
    catalogue = Catalogue(field_at(server))
    before = tick(instance, catalogue)
    server.holdings.add("iblateq", RA, DEC, 59000.3, "F160W", release=59004.0)
    later = tick(instance, catalogue)
    changed = set(keys(later)) - set(keys(before))
    assert [key.partition("@")[0] for key in changed] == ["calibrate_night:m31|2020-05-31"]


def test_an_archive_that_is_down_is_asked_more_seldom_and_does_not_hold_up_the_others(
    instance, server, tmp_path
):
    for number in range(3):
        write(tmp_path / "data" / f"a{number}.fits", None, TAN, **{"DATE-OBS": f"2024-03-02T04:0{number}:00"})
    folder = Field("here", 150.0, 2.0, 0.5, archive=f"folder:{tmp_path / 'data'}")
    server.misbehave("status", "", -1, value=503)
    result = tick(instance, Catalogue(field_at(server), folder))
    assert any(":here|" in key or "make_masters" in key or "calibrate" in key for key in keys(result))
    state = json.loads(result.cursor)["fields"]
    assert state["m31"]["failures"] == 1
    assert "503" in state["m31"]["error"]
    asked = len(server.requests)
    again = tick(instance, Catalogue(field_at(server)), cursor=result.cursor)
    assert len(server.requests) == asked  # not due yet
    assert "m31: no answer once" in said(again)
    assert "status 503" in said(again)
    assert "asked again at" in said(again)


def test_an_archive_that_is_gone_is_counted_once_and_found_again(instance, tmp_path):
    folder = tmp_path / "data"
    field = Field("here", 150.0, 2.0, 0.5, archive=f"folder:{folder}")
    first = tick(instance, Catalogue(field))
    for _ in range(3):
        first = tick(instance, Catalogue(field), cursor=first.cursor)
    assert json.loads(first.cursor)["fields"]["here"]["failures"] == 1
    assert "here: no answer once" in said(first)
    write(folder / "a.fits", None, TAN)
    again = tick(instance, Catalogue(field), cursor=first.cursor)
    assert json.loads(again.cursor)["fields"]["here"]["failures"] == 0


def test_a_tick_that_runs_late_looks_at_the_others_next_time(instance, server, monkeypatch):
    monkeypatch.setattr(sensors, "TICK_SECONDS", -1.0)
    result = tick(instance, Catalogue(field_at(server)))
    assert "1 field to be looked at in the next tick" in said(result)


def test_references_that_cannot_be_made_are_not_waited_for(instance, server):
    field = field_at(server, reference="ps1")
    made = Made(Archive({"2020-05-31": 2}, raw=False))
    catalogue = Catalogue(field)
    from astrid_pipeline.archives.base import open_archive
    from astrid_pipeline.night.plan import Listing

    archive = open_archive(field.archive)
    listing = Listing.of(archive, field)
    night, records = next(iter(listing.nights.items()))
    made.frames["calibrated_frames", f"m31|{night}"] = {
        r.exposure_id: {
            "exposure_id": r.exposure_id,
            "night": night,
            "filter": r.filter,
            "instrument": r.instrument,
        }
        for r in records
    }
    made.partitions.setdefault("calibrated_frames", set()).add(f"m31|{night}")
    import pandas as pd

    made.tables["observations", f"m31|{night}"] = pd.DataFrame(
        {"exposure_id": [r.exposure_id for r in records]}
    )
    (key,) = keys(tick(instance, catalogue, made))
    assert key.startswith("make_references:m31@")
    run_of(instance, "make_references", key, dg.DagsterRunStatus.SUCCESS)
    after = tick(instance, catalogue, made)
    assert keys(after)
    assert not any(k.startswith("make_references") for k in keys(after))


def test_a_field_in_which_nothing_happens_is_not_looked_through_at_each_tick(instance, server, monkeypatch):
    catalogue = Catalogue(field_at(server))
    looked = []
    monkeypatch.setattr(sensors, "_steps", lambda *a: looked.append(1) or [])
    first = tick(instance, catalogue)
    assert json.loads(first.cursor)["says"].startswith("nothing new in 1 field")
    second = tick(instance, catalogue, cursor=first.cursor)
    assert len(looked) == 1
    from dagster._core.test_utils import create_run_for_test

    create_run_for_test(instance, job_name="process_night", tags={"astrid/field": "m31"})
    tick(instance, catalogue, cursor=second.cursor)
    assert len(looked) == 2


# -- failed partitions ---------------------------------------------------------------------------------------


def test_failures_are_tried_again_or_reported(instance):
    from dagster._core.events import DagsterEvent, DagsterEventType, StepFailureData
    from dagster._core.events.log import EventLogEntry
    from dagster._utils.error import SerializableErrorInfo

    def fail(partition: str, error: str, text: str, retry: int = 0) -> dg.DagsterRun:
        run = run_of(instance, "process_night", f"process_night:{partition}@x", dg.DagsterRunStatus.STARTED)
        instance.add_run_tags(run.run_id, {"astrid/retry": str(retry)})
        cause = SerializableErrorInfo(f"astrid_pipeline.errors.{error}: {text}", [], error)
        info = SerializableErrorInfo("wrapped", [], "DagsterExecutionStepExecutionError", cause)
        event = DagsterEvent(
            DagsterEventType.STEP_FAILURE.value,
            job_name="process_night",
            event_specific_data=StepFailureData(error=info, user_failure_data=None),
        )
        instance.store_event(EventLogEntry(None, 40, "", run.run_id, 0.0, dagster_event=event))
        instance.report_run_failed(run)
        return run

    fail("m31|2026-01-01", "ServiceError", "mast: status 503")
    fail("m31|2026-01-02", "HeaderError", "x.fits: no DATE-OBS (add it)")
    fail("m31|2026-01-03", "ServiceError", "mast: status 503", retry=3)

    def tick(now_plus: float) -> dg.SensorResult:
        import time

        real = time.time()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sensors.time, "time", lambda: real + now_plus)
            return sensors.failed_partitions(dg.build_sensor_context(instance=instance))

    early = said(tick(0))
    assert "process_night of m31, 2026-01-01: tried again in 10 min (mast: status 503)" in early
    assert "m31, 2026-01-02: trying again cannot help: x.fits: no DATE-OBS (add it)" in early
    assert "m31, 2026-01-03: 3 retries did not help" in early
    late = tick(11 * 60)
    assert "1 run tried again" in late.cursor
    (request,) = late.run_requests
    assert request.partition_key == "m31|2026-01-01"
    assert request.tags["astrid/retry"] == "1"
    assert request.run_key.startswith("retry:")
    # A run that has begun since is the answer to the failure.
    run_of(instance, "process_night", "process_night:m31|2026-01-01@y", dg.DagsterRunStatus.SUCCESS)
    assert "m31, 2026-01-01" not in said(tick(11 * 60))


def test_a_failed_run_of_which_nothing_is_missing_is_a_success(instance):
    @dg.op
    def only():
        if dg.OpExecutionContext.get().run.tags.get("fail"):
            raise ValueError

    @dg.job
    def chain():
        only()

    for tags in ({}, {"fail": "yes"}):
        result = chain.execute_in_process(instance=instance, tags=tags, raise_on_error=False)
        run = instance.get_run_by_id(result.run_id)
        if not tags:
            instance.report_run_failed(run, "its process is gone")
        (event,) = (
            entry.event_log_entry.dagster_event
            for entry in instance.get_records_for_run(
                run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE
            ).records
        )
        context = dg.build_run_status_sensor_context(
            "made_after_all", dagster_event=event, dagster_instance=instance, dagster_run=run
        )
        sensors.made_after_all(context.for_run_failure())
        assert instance.get_run_by_id(run.run_id).is_success == (not tags)


# -- inbox ---------------------------------------------------------------------------------------------------


def test_the_inbox_adds_fields_for_complete_files(instance, home, tmp_path, monkeypatch):
    catalogue = Catalogue()

    def look(cursor=None) -> dg.SensorResult:
        context = dg.build_sensor_context(
            instance=instance, cursor=cursor, resources={"catalogue": Opens(catalogue)}
        )
        return sensors.inbox(context)

    assert "no inbox is set" in said(look())
    monkeypatch.setenv("ASTRID_INBOX", str(tmp_path / "in"))
    reset_settings()
    assert "the inbox is not there" in said(look())
    write(tmp_path / "in" / "a.fits", None, TAN)
    first = look()
    assert "1 still being written (a.fits)" in said(first)
    second = look(first.cursor)
    assert "1 new files" in said(second)
    assert len(catalogue.known) == 1
    (field,) = catalogue.fields()
    assert field.archive == f"folder:{home / 'received'}"
    assert second.dynamic_partitions_requests[0].partition_keys == [field.name]
    assert "0 new files" in said(look(second.cursor))
    assert replace(field) == field
