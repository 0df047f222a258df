"""References across instruments and surveys: refused, unless the policy names the survey; then made, and flagged."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from astropy.wcs import WCS

from astrid_pipeline.archives import header_cache
from astrid_pipeline.errors import NoReferenceError
from astrid_pipeline.imaging import Frame, assess, prepare
from astrid_pipeline.night.differences import difference_one
from astrid_pipeline.night.plan import Listing, ready_steps
from astrid_pipeline.night.references import FrameNote, build_references, choose_reference, plan_references
from astrid_pipeline_tests.archive_server import ArchiveServer
from astrid_pipeline_tests.night.test_plan import FIELD, Archive, Made


def note(night: str, number: int, band: str = "r", instrument: str = "CamA") -> FrameNote:
    return FrameNote(f"{instrument}-{band}-{night}-{number}", night, band, 2.5, 20.0, 0.01, instrument)


def metas(plans):
    return {
        p.reference_id: {
            "filter": p.filter,
            "valid_from": p.valid_from,
            "nights": json.dumps(p.nights),
            "serves": p.instrument,
            "policy_rank": p.rank,
        }
        for p in plans
    }


def test_instruments_do_not_mix():
    notes = [note("2026-01-01", k, instrument=name) for k in range(2) for name in ("CamA", "CamB")]
    assert plan_references("f", notes) == []  # four frames, but not three of one instrument
    notes.append(note("2026-01-01", 2, instrument="CamB"))
    (plan,) = plan_references("f", notes)
    assert plan.instrument == "CamB"
    assert all(name.startswith("CamB") for name in plan.exposure_ids)
    found = metas([plan])
    assert choose_reference(found, "r", "2026-01-05", "CamB") == plan.reference_id
    with pytest.raises(NoReferenceError, match="of CamA in filter r: those of CamB are another instrument's"):
        choose_reference(found, "r", "2026-01-05", "CamA")


def test_a_named_survey_serves_until_the_field_has_its_own():
    notes = [note("2026-01-10", k) for k in range(3)]
    plans = plan_references("f", notes, "auto+ps1+dss2")
    assert [p.rank for p in plans] == [0, 1, 2]
    assert [p.survey for p in plans] == ["", "ps1", "dss2"]
    assert plans[1].exposure_ids == ("survey:ps1",)
    found = metas(plans)
    assert choose_reference(found, "r", "2026-01-05", "CamA") == plans[1].reference_id
    assert choose_reference(found, "r", "2026-01-11", "CamA") == plans[0].reference_id
    # A survey's image never judges a night of the survey's own years.
    assert choose_reference(found, "r", "2012-01-05", "CamA") == plans[2].reference_id
    with pytest.raises(NoReferenceError, match="holds for 1999"):
        choose_reference(found, "r", "1999-01-05", "CamA")
    # Later frames change nothing about it.
    later = plan_references("f", [*notes, note("2026-02-10", 1)], "auto+ps1+dss2")
    assert [p for p in later if p.survey] == [p for p in plans if p.survey]


def test_one_frame_is_enough_for_a_survey_s_image():
    archive = Archive({"2026-01-01": 1, "2026-01-02": 1}, raw=False)
    field = replace(FIELD, reference="ps1")
    listing = Listing.of(archive, field)
    made = Made(archive)
    steps = ready_steps(archive, listing, made)
    assert [(s.job, s.partition) for s in steps] == [("calibrate_night", "m33|2026-01-01")]
    made.do(steps[0])
    (references,) = ready_steps(archive, listing, made)
    assert references.job == "make_references"
    # The survey did not have the field: the step is given up, and nothing waits for it for ever.
    assert "make_references" not in {s.job for s in ready_steps(archive, listing, made, {references.run_key})}


def science(server: ArchiveServer, transient: tuple[float, float, float]) -> Frame:
    """An exposure of the server's sky in 1.2″ seeing, with one new star of (x, y, nanomaggies)."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.1, 2.2]
    wcs.wcs.crpix = [110.5, 105.5]
    wcs.wcs.cd = np.array([[-0.4, 0.0], [0.0, 0.4]]) / 3600
    shape = (210, 220)
    image = server.images.sky(wcs, shape, seeing_px=3.0)
    x, y, flux = transient
    yy, xx = np.mgrid[: shape[0], : shape[1]]
    sigma = 3.0 / 2.355
    image += flux / (2 * np.pi * sigma**2) * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / (2 * sigma**2))
    image += np.random.default_rng(5).normal(0, 0.02, shape)
    meta = {
        "exposure_id": "new",
        "filter": "r",
        "instrument": "CamA",
        "night": "2026-01-05",
        "unit": "nJy",
        "zero_point": 22.5,
        "mjd": 61000.0,
        "exposure": 60.0,
    }
    return assess(prepare(Frame(image.astype(np.float32), wcs=wcs, meta=meta)))


def test_a_new_star_is_found_against_pan_starrs(tmp_path, monkeypatch):
    monkeypatch.setattr(header_cache, "cache_folder", lambda: tmp_path / "headers")
    monkeypatch.setenv("ASTRID_HOME", str(tmp_path))
    with ArchiveServer() as server:
        frame = science(server, (150.0, 80.0, 25.0))
        notes = [FrameNote("new", "2026-01-05", "r", 3.0, 22.0, 0.0, "CamA")]
        plans = plan_references("f", notes, f"ps1?server={server.url}")
        outcome = build_references(plans, lambda _: frame)
        assert outcome.problems == []
        ((key, meta),) = outcome.metas.items()
        assert meta["cross_mission"] is True
        assert meta["valid_from"] == "2016-01-01"
        assert choose_reference(outcome.metas, "r", "2026-01-05", "CamA") == key
        difference, _ = difference_one(frame, outcome.products[key])
    assert "not by CamA" in difference.meta["reference_caveats"]
    peak = np.unravel_index(
        np.nanargmax(np.where(difference.mask == 0, difference.score, 0)), difference.shape
    )
    assert peak == (80, 150)
    assert difference.flux[80, 150] == pytest.approx(25.0, rel=0.05)


def test_a_survey_without_the_field_is_a_problem_told(tmp_path, monkeypatch):
    monkeypatch.setattr(header_cache, "cache_folder", lambda: tmp_path / "headers")
    with ArchiveServer() as server:
        frame = science(server, (150.0, 80.0, 25.0))
        notes = [FrameNote("new", "2026-01-05", "r", 3.0, 22.0, 0.0, "CamA")]
        plans = plan_references("f", notes, f"ps1?server={server.url}")
        server.images.covered = lambda ra, dec: ra < 150.09
        outcome = build_references(plans, lambda _: frame)
    assert outcome.metas == {}
    assert "covers" in outcome.problems[0].what
    assert outcome.problems[0].permanent
