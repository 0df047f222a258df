"""The simulated survey behind the archive's protocol."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from astrid_pipeline.archives.base import Archive, ExposureRecord, open_archive
from astrid_pipeline.errors import ConfigError, InputError
from astrid_pipeline.simulation import SimulatedArchive
from astrid_pipeline.simulation.schedule import SurveyOptions

SPEC = "simulated?seed=3&size=160&nights=1&fields=1&exposures=2&templates=2&filters=r"


@pytest.fixture(scope="module")
def archive():
    return open_archive(SPEC)


def test_it_is_an_archive(archive):
    assert isinstance(archive, Archive)
    (field,) = archive.fields()
    assert field.name == "sim-01"
    assert field.filters == ("r",)
    assert open_archive(field.archive).exposures(field) == archive.exposures(field)


def test_exposures_come_in_order_and_since(archive):
    (field,) = archive.fields()
    records = archive.exposures(field)
    assert [r.kind for r in records] == ["light"] * 4
    assert [r.mjd for r in records] == sorted(r.mjd for r in records)
    assert archive.exposures(field, since=records[1].mjd) == records[2:]
    assert all(math.hypot(r.ra - field.ra, r.dec - field.dec) < 0.05 for r in records)


def test_calibrations_belong_to_instrument_and_night(archive):
    (field,) = archive.fields()
    record = archive.exposures(field)[0]
    found = archive.calibrations(record.instrument, record.night)
    assert sorted({r.kind for r in found}) == ["bias", "dark", "flat"]
    assert all(r.night == record.night for r in found)
    assert archive.calibrations("OTHER", record.night) == []
    assert archive.calibrations(record.instrument, "2020-01-01") == []


def test_fetched_files_are_as_long_as_listed_and_read_back(archive, tmp_path):
    (field,) = archive.fields()
    light = archive.exposures(field)[-1]
    for record in (light, *archive.calibrations(light.instrument, light.night)[::4]):
        path = archive.fetch(record, tmp_path)
        assert path.name == f"{record.exposure_id}.fits"
        assert path.stat().st_size == record.size
        with fits.open(path) as hdus:
            hdus.verify("exception")
            counts, header = archive.survey.expose(record.exposure_id)
            np.testing.assert_array_equal(hdus[0].data, counts)
            for key in header:
                expected = header[key]
                if isinstance(expected, float):  # a card has room for some 15 digits
                    expected = pytest.approx(expected, rel=1e-12)
                assert hdus[0].header[key] == expected
            middle = hdus[0].header["MJD-OBS"] + record.exposure / 2 / 86400
            assert middle == pytest.approx(record.mjd, abs=1e-6)
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".part")]


def test_the_same_bytes_every_time(archive, tmp_path):
    record = archive.exposures(archive.fields()[0])[0]
    again = open_archive(SPEC).fetch(record, tmp_path / "b")
    assert archive.fetch(record, tmp_path / "a").read_bytes() == again.read_bytes()


def test_rendered_files_are_kept_in_the_folder(tmp_path):
    kept = tmp_path / "kept"
    archive = open_archive(SPEC.replace("simulated", f"simulated:{kept}"))
    assert isinstance(archive, SimulatedArchive)
    record = archive.exposures(archive.fields()[0])[0]
    first = archive.fetch(record, tmp_path / "one")
    (file,) = kept.iterdir()
    when = file.stat().st_mtime_ns
    second = archive.fetch(record, tmp_path / "two")
    assert file.stat().st_mtime_ns == when
    assert first.read_bytes() == second.read_bytes() == file.read_bytes()
    # Half a file is made anew.
    file.write_bytes(file.read_bytes()[:1000])
    assert archive.fetch(record, tmp_path / "three").read_bytes() == first.read_bytes()


def test_catalogue_and_truth(archive):
    (field,) = archive.fields()
    stars = archive.catalogue(field)
    assert list(stars.columns) == ["ra", "dec", "mag_r"]
    assert len(stars) > 20
    night = archive.exposures(field)[-1].night
    truth = archive.truth(field, night)
    assert set(truth["night"]) == {night}
    assert set(truth["exposure_id"]) <= {r.exposure_id for r in archive.exposures(field)}


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("simulated?planets=3", "planets"),
        ("simulated?nights=many", "nights='many'"),
        ("simulated?nights=0", "nights=0"),
        ("simulated?clouds=perhaps", "clouds"),
        ("simulated?filters=", "none"),
    ],
)
def test_a_wrong_spec_says_what_is_wrong(spec, match):
    with pytest.raises(ConfigError, match=match):
        open_archive(spec)


def test_a_record_of_another_survey_is_refused(archive, tmp_path: Path):
    record = ExposureRecord("S9-x", "sim-01", "light", 61000.0, "2026-03-14", "r", "SIMCAM", 90.0, "", 1)
    with pytest.raises(InputError, match="no such exposure"):
        archive.fetch(record, tmp_path)


def test_the_spec_is_made_from_the_options(tmp_path):
    archive = SimulatedArchive(SurveyOptions(seed=7, filters=("g",)), folder=tmp_path)
    assert archive.spec == f"simulated:{tmp_path}?seed=7&filters=g"
    opened = open_archive(archive.spec)
    assert isinstance(opened, SimulatedArchive)
    assert opened.survey.options == archive.survey.options
