"""The S3 server slow, out of order, cutting its answers; objects that have changed since they were written."""

from __future__ import annotations

from collections import Counter

import dagster as dg
import pytest

from astrid_pipeline import step_failures
from astrid_pipeline.night.retries import is_permanent
from astrid_pipeline_tests.faults.conftest import FIELD, FRAMES, is_not_there, is_whole, said_of
from astrid_pipeline_tests.night.small_survey import night_of

#: Requests that boto3 makes of one that is answered by 503.
CLIENT_TRIES = 5

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.mlflow, pytest.mark.s3]


def test_trouble_that_passes_is_waited_out(healthy_site):
    """Slow answers, 500 and 503, bodies that are cut: all in one night."""
    partition = healthy_site.fresh_night()
    night = partition.split("|")[1]
    for kind, value, times, path in (
        ("status", 500, 3, f"observations/small/{night}"),
        ("status", 503, 3, f"calibrated_frames/small/{night}"),
        ("cut", 0, 2, f"raw/small/{night}"),
        ("slow", 0.3, 8, f"difference_images/small/{night}"),
    ):
        healthy_site.proxy.misbehave(kind, path, times, value, "GET" if kind == "cut" else "")
    assert healthy_site.make(partition).error is None
    assert healthy_site.proxy.met == {"status": 6, "cut": 2, "slow": 8}
    healthy_site.proxy.behave()
    is_whole(partition)


@pytest.fixture(autouse=True)
def _tried_again_soon(monkeypatch):
    """Steps wait a moment before they are tried again, and not as long as they do for real servers."""
    monkeypatch.setattr(step_failures, "FIRST_PAUSE", 0.2)
    monkeypatch.setattr(step_failures, "MAX_RETRIES", 1)


def tries_of(run_id: str) -> dict[str, int]:
    """Return how many times each step of a run was begun, by Dagster's event log."""
    from astrid_pipeline.services.dagster_home import dagster_instance

    kinds = {dg.DagsterEventType.STEP_START, dg.DagsterEventType.STEP_RESTARTED}
    with dagster_instance() as instance:
        records = instance.get_records_for_run(run_id, of_type=kinds).records
    return dict(Counter(str(record.event_log_entry.step_key) for record in records))


def test_a_step_waits_out_what_its_client_does_not_and_nothing_before_it_is_made_again(healthy_site):
    """Boto3 asks again within seconds; a server that answers 503 for longer costs the one step another try."""
    partition = healthy_site.fresh_night()
    night = partition.split("|")[1]
    healthy_site.proxy.misbehave(
        "status", f"calibrated_frames/small/{night}", times=CLIENT_TRIES + 1, value=503, method="PUT"
    )
    result = healthy_site.make(partition)
    assert result.error is None
    assert healthy_site.proxy.met == {"status": CLIENT_TRIES + 1}
    tries = tries_of(result.run_id)
    assert tries.pop("calibrated_frames") == 2
    assert set(tries.values()) == {1}
    is_whole(partition)


def test_a_truncated_file_is_the_exposures_trouble_and_is_not_tried_again(healthy_site):
    partition = healthy_site.fresh_night()
    path = healthy_site.frames / f"{FIELD}-{healthy_site.used:04d}-1.fits"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    try:
        result = healthy_site.make(partition)
    finally:
        path.write_bytes(whole)
    assert result.error is None
    assert set(tries_of(result.run_id).values()) == {1}
    is_whole(partition, FRAMES - 1)


def test_a_server_that_stays_out_of_order_fails_the_night_in_words_and_keeps_what_was_made(healthy_site):
    from astrid_pipeline import driver

    partition = healthy_site.fresh_night()
    night = partition.split("|")[1]
    # Raw files and observations are kept; the second calibrated frame is not taken any more.
    healthy_site.proxy.misbehave("status", f"calibrated_frames/small/{night}", value=503, method="PUT")
    result = healthy_site.make(partition)
    healthy_site.proxy.behave()
    assert result.error is not None
    said = said_of(result.run_id)
    assert "calibrated_frames was not made" in said
    assert "the server answered 503" in said
    assert "may go better: failed_partitions tries it again" in said
    assert tries_of(result.run_id)["calibrated_frames"] == 1 + step_failures.MAX_RETRIES
    assert not is_permanent("StoreError")
    is_not_there(partition)
    assert len(driver.open_products().table("observations", partition)) == FRAMES
    assert healthy_site.make(partition).error is None
    is_whole(partition)


def test_a_server_that_cuts_every_answer_fails_the_night_and_not_single_exposures(healthy_site):
    partition = healthy_site.fresh_night()
    night = partition.split("|")[1]
    healthy_site.proxy.misbehave("cut", f"raw/small/{night}", method="GET")
    result = healthy_site.make(partition)
    healthy_site.proxy.behave()
    assert result.error is not None
    is_not_there(partition)
    assert healthy_site.make(partition).error is None
    is_whole(partition)


def test_a_raw_file_that_has_changed_is_found_and_fetched_again(healthy_site):
    """What the server gives of one file is not what was written, by the digest that the file carries."""
    partition = healthy_site.fresh_night()
    night = partition.split("|")[1]
    assert healthy_site.make(partition, "ingest").error is None
    assert healthy_site.server.folder is not None
    path = sorted((healthy_site.server.folder / "sky" / "survey" / "raw" / "small" / night).glob("*.fits"))[1]
    good = path.read_bytes()
    healthy_site.proxy.misbehave("flip", path.name, method="GET")
    result = healthy_site.make(partition)
    healthy_site.proxy.behave()
    assert result.error is not None
    # Another try of the step would find no file, and the night would be kept without this exposure.
    assert set(tries_of(result.run_id).values()) == {1}
    said = said_of(result.run_id)
    assert path.name in said
    assert "the damaged file was taken away" in said
    assert "failed_partitions tries it again" in said
    assert not path.exists()
    is_not_there(partition)
    # The retry needs nobody: the file is not there any more, and so it comes from the archive.
    assert healthy_site.make(partition).error is None
    assert path.read_bytes() == good
    is_whole(partition)


def test_a_product_that_has_changed_is_refused_and_made_again(healthy_site):
    from astrid_pipeline import driver
    from astrid_pipeline.errors import DamagedError

    partition = f"{FIELD}|{night_of(1)}"  # made with the site
    field, night = partition.split("|")
    assert healthy_site.server.folder is not None
    folder = healthy_site.server.folder / "sky" / "survey" / "difference_images" / field / night
    path = sorted(folder.glob("*.fits"))[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    frames = driver.open_products().frames("difference_images", field, night)
    name = next(name for name in frames if frames.index.entries[name].key.endswith(path.name))
    with pytest.raises(DamagedError, match=rf"{path.name}.*materialize the asset"):
        frames[name]
    assert healthy_site.make(partition).error is None
    is_whole(partition)
