"""The demo as a user sees it: from raw frames to detections and a trained model, once."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest

from astrid_pipeline_tests.assets.conftest import run_astrid

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.mlflow]


def test_it_ends_with_the_table_and_where_to_look(demo):
    assert "What was found" in demo.output
    assert re.search(r"sim-01\s+2026-03-14\s+4\s", demo.output), demo.output
    assert "S/N 10–20" in demo.output
    report = re.search(r"file://(\S+index\.html)", demo.output)
    assert report
    assert (demo.home / "report" / "index.html").read_text().count("<section id=") == 2


def test_again_it_does_nothing_twice(demo):
    done = run_astrid(demo.home, "demo", "--quick")
    assert done.returncode == 0, done.stderr
    assert "everything is made already" in done.stdout
    assert "What was found" in done.stdout


def test_bright_injections_are_found_and_the_noise_is_right(in_demo):
    from astrid_pipeline.driver import open_products

    products = open_products()
    summary = products.table("night_summary", "sim-01|2026-03-14")
    assert set(summary["filter"]) == {"g", "r"}
    assert (summary.exposures == 2).all()
    assert (summary.score_sigma - 1).abs().max() < 0.05
    assert summary.registration.max() < 0.3
    truth = products.table("injections", "sim-01|2026-03-14")
    assert len(truth) >= 60
    bright = truth[truth.snr > 12]
    assert bright.found.mean() > 0.95
    assert bright.detected.mean() > 0.85
    assert truth[truth.snr < 3.5].found.mean() < 0.3


def test_detections_carry_what_is_promised(in_demo):
    from astrid_pipeline.driver import open_products
    from astrid_pipeline.learning.schema import DETECTIONS

    table = open_products().table("detections", "sim-01|2026-03-14")
    assert list(table.columns) == DETECTIONS.names
    assert len(table) > 5
    assert table.score.between(0, 1).all()
    assert (table.snr.abs() >= 5).all(), "nothing fainter than the candidates' threshold"
    assert (table.mask_area >= 0).all()
    assert (table.model_version != "").all()
    assert table.ra.between(157, 160).all()


def test_positions_on_the_sky_are_right_to_a_fraction_of_an_arcsecond(in_demo):
    """The header's pointing is off by arcseconds on purpose: the catalogue's stars must have corrected it."""
    from astrid_pipeline.archives.base import open_archive
    from astrid_pipeline.driver import open_catalogue, open_products

    field = open_catalogue().field("sim-01")
    truth = open_archive(field.archive).truth(field, "2026-03-14")
    truth = truth[(truth.snr > 15) & (truth.kind == "point")]
    found = open_products().table("detections", "sim-01|2026-03-14")
    offsets = []
    for row in truth.itertuples():
        mine = found[found.exposure_id == row.exposure_id]
        if len(mine):
            d = np.hypot((mine.ra - row.ra) * np.cos(np.radians(row.dec)), mine.dec - row.dec) * 3600
            offsets.append(d.min())
    near = [o for o in offsets if o < 3]
    assert len(near) >= 0.6 * len(truth)
    assert np.median(near) < 0.3


def test_the_catalogue_knows_the_detections(in_demo):
    from astrid_pipeline.driver import open_catalogue, open_products

    catalogue = open_catalogue()
    table = open_products().table("detections", "sim-01|2026-03-14")
    best = table.sort_values("score").iloc[-1]
    found = catalogue.cone(float(best.ra), float(best.dec), 1.0 / 3600)
    assert len(found) >= 1
    nights = catalogue.nights("sim-01")
    assert set(map(str, nights.night)) >= {"2026-03-14", "2026-03-17"}


def test_alert_packets_are_read_with_their_own_schema_alone(in_demo):
    import gzip

    from astropy.io import fits
    from fastavro import reader

    from astrid_pipeline.driver import open_products

    products = open_products()
    table = products.table("alerts", "sim-01|2026-03-14")
    data = products.store.get_bytes("alert-packets/sim-01/2026-03-14.avro")
    packets = list(reader(io.BytesIO(data)))
    assert [p["alertId"] for p in packets] == list(table.alert_id)
    stamp = fits.getdata(io.BytesIO(gzip.decompress(packets[0]["cutoutDifference"])))
    assert stamp.shape == (63, 63)
    # The source stands in the middle of its own cut-out.
    middle = np.abs(stamp[27:36, 27:36])
    assert np.nanmax(middle) > 3 * np.nanstd(stamp[:20])


def test_samples_and_dataset_fit_together(in_demo):
    from astrid_pipeline.driver import open_products
    from astrid_pipeline.learning.dataset import SPLITS, collect, open_split

    products = open_products()
    folders = {
        key: products.folder("training_samples", key) for key in products.partitions("training_samples")
    }
    assert set(folders) == {"sim-01|2026-03-14", "sim-01|2026-03-17"}
    dataset = collect("test", folders)
    assert set(dataset.split) <= set(SPLITS)
    assert dataset.groupby("sky").split.nunique().max() == 1
    train = open_split(dataset, folders, "train")
    assert len(train) == (dataset.split == "train").sum()
    assert train.planes(0).shape == (4, 256, 256)


def test_the_packaged_weights_are_the_first_champion(in_demo):
    from astrid_pipeline.resources.detector import DETECTOR
    from astrid_pipeline.resources.tracking import CHAMPION, Tracking

    champion = Tracking().find(DETECTOR, CHAMPION)
    assert champion is not None
    assert champion.version == "1"
    assert champion.tags["source"] == "package"


def test_every_materialization_says_what_a_person_asks(in_demo):
    from dagster import AssetKey, AssetRecordsFilter

    from astrid_pipeline.services.dagster_home import dagster_instance

    wanted = {
        "observations": {"exposures", "seconds"},
        "calibrated_frames": {"seeing_px", "sky", "depth", "zero_point", "picture", "seconds"},
        "difference_images": {"score_sigma", "registration_x_px", "picture", "seconds"},
        "candidates": {"candidates", "picture"},
        "detections": {"detections", "model", "picture", "joules", "energy_source", "mlflow_run"},
        "alerts": {"alerts"},
        "injections": {"injected", "detected", "picture"},
        "night_summary": {"picture", "recovered_percent"},
    }
    with dagster_instance() as instance:
        for name, keys in wanted.items():
            records = instance.fetch_materializations(
                AssetRecordsFilter(AssetKey(name), asset_partitions=["sim-01|2026-03-14"]), limit=1
            ).records
            materialization = records[0].asset_materialization
            assert keys <= set(materialization.metadata), name
            assert materialization.tags["dagster/code_version"]
            if "picture" in keys:
                text = materialization.metadata["picture"].value
                assert text.startswith("![")
                assert len(text) < 1_000, "longer text hides behind a click"


def test_status_says_what_there_is(demo):
    done = run_astrid(demo.home, "status")
    assert done.returncode == 0, done.stderr
    assert re.search(r"sim-01\s+2\s+2026-03-14\s+2026-03-17", done.stdout), done.stdout


def test_a_retraining_makes_a_challenger_with_all_that_the_champion_has(in_demo, tmp_path):
    from astrid_pipeline.definitions import defs
    from astrid_pipeline.learning import load_model
    from astrid_pipeline.resources.detector import DETECTOR
    from astrid_pipeline.resources.tracking import CHALLENGER, CHAMPION, Tracking
    from astrid_pipeline.services.dagster_home import dagster_instance

    short = {"unet": {"config": {"steps": 8, "simulated_share": 0.0}}}
    with dagster_instance() as instance:
        done = defs.resolve_job_def("retrain").execute_in_process(
            instance=instance, run_config={"ops": short}
        )
    assert done.success
    tracking = Tracking()
    challenger = tracking.find(DETECTOR, CHALLENGER)
    assert challenger is not None
    for alias in (CHALLENGER, CHAMPION):
        tracking.load(DETECTOR, tmp_path / alias, alias)
    made, champion = (
        load_model(next((tmp_path / alias).rglob("*.safetensors"))) for alias in (CHALLENGER, CHAMPION)
    )
    assert made.version == done.run_id[:8]
    assert made.facts["epochs_from"].startswith("astrid-unet ")
    assert made.epochs is not None
    assert made.epochs.forest.value.tolist() == champion.epochs.forest.value.tolist()
    for part in ("real_bogus", "classical", "ensemble"):
        assert getattr(made, part) is not None, part
    assert tracking.find(DETECTOR, CHAMPION).version == "1", (
        "eight steps are no reason to change what detects"
    )
