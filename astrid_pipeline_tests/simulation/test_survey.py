"""A small simulated survey: its raw frames against its own truth, with masters taken from the camera itself."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from astrid_pipeline.archives.base import night_of
from astrid_pipeline.errors import ConfigError, InputError
from astrid_pipeline.simulation import SimulatedSurvey
from astrid_pipeline.simulation.schedule import SITE_LONGITUDE, SurveyOptions, nights_of
from astrid_pipeline.simulation.sky import render

SIZE = 384


@pytest.fixture(scope="module")
def survey():
    return SimulatedSurvey(SurveyOptions(seed=5, size=SIZE, supernovae=60))


@pytest.fixture(scope="module")
def truth(survey):
    """The truth of all nights and fields."""
    tables = [survey.truth(f, n) for f in survey.field_names for n, _ in nights_of(survey.options)]
    return pd.concat(tables, ignore_index=True)


def lights(survey, season="science"):
    return [p for p in survey.plans.values() if p.kind == "light" and p.season == season]


def calibrated(survey, plan):
    """Electrons, with the true bias structure, dark and flat taken out; the slow and obvious calibration."""
    counts, _ = survey.expose(plan.exposure_id)
    camera = survey.camera
    counts = counts.astype(float)
    level = np.median(counts[:, SIZE:], axis=1, keepdims=True)
    electrons = (counts[:, :SIZE] - level - camera.bias_structure) * camera.gain
    return (electrons - camera.dark * plan.exposure) / camera.flat(plan.filter)


def matched_flux(image, psf, x, y):
    """Optimal PSF flux at sub-pixel places, even noise; the local sky from a ring."""
    out = []
    for a, b in zip(np.asarray(x), np.asarray(y), strict=True):
        size = 24
        _, stamp = next(iter(psf.stamps(np.array([a]), np.array([b]), size)))
        x0, y0 = round(a) - size // 2, round(b) - size // 2
        cut = image[y0 : y0 + size, x0 : x0 + size]
        yy, xx = np.mgrid[:size, :size] - size / 2
        sky = np.median(cut[np.hypot(xx, yy) > 9])
        p = stamp[0].astype(float)
        out.append(((cut - sky) * p).sum() / (p * p).sum())
    return np.array(out)


def test_the_plan_is_what_was_asked_for(survey):
    o = survey.options
    science, template = lights(survey), lights(survey, "template")
    assert len(science) == o.fields * o.nights * len(o.filters) * o.exposures
    assert len(template) == o.fields * len(o.filters) * o.templates
    nights = nights_of(o)
    assert [s for _, s in nights] == ["template"] + ["science"] * 4
    for night, _ in nights:
        kinds = pd.Series([p.kind for p in survey.plans.values() if p.night == night]).value_counts()
        assert kinds["bias"] == o.biases
        assert kinds["dark"] == o.darks
        assert kinds["flat"] == o.flats * len(o.filters)
    for plan in survey.plans.values():
        assert night_of(plan.mjd, SITE_LONGITUDE) == plan.night
        assert plan.exposure_id == "".join(c for c in plan.exposure_id if c.isalnum() or c in "._-")
    assert max(p.mjd for p in template) < min(p.mjd for p in science) - 50
    gaps = np.diff([p.mjd for p in science if p.night == nights[1][0]])
    assert gaps.min() * 86400 > o.exposure


def test_one_night_is_cloudy_and_one_exposure_has_a_satellite(survey):
    science = pd.DataFrame([vars(p) for p in lights(survey)])
    worst = science.groupby("night")["transparency"].max()
    assert (worst < 0.8).sum() == 1
    assert worst.idxmin() == nights_of(survey.options)[3][0]
    assert science["satellite"].sum() == 1
    assert science.groupby("night")["seeing"].median().nunique() == 4


def test_the_same_seed_gives_the_same_bytes(survey):
    name = lights(survey)[4].exposure_id
    again = SimulatedSurvey(SurveyOptions(seed=5, size=SIZE, supernovae=60))
    # Asked for in another order, on a fresh object.
    np.testing.assert_array_equal(again.expose(name)[0], survey.expose(name)[0])
    assert again.expose(name)[1] == survey.expose(name)[1]
    other = SimulatedSurvey(SurveyOptions(seed=6, size=SIZE, supernovae=60))
    assert not np.array_equal(other.expose(lights(other)[4].exposure_id)[0], survey.expose(name)[0])


def test_raw_frames_have_overscan_sky_and_noise(survey):
    plan = lights(survey)[0]
    counts, header = survey.expose(plan.exposure_id)
    assert counts.shape == (SIZE, SIZE + 32)
    assert counts.dtype == np.uint16
    assert header["BIASSEC"] == f"[{SIZE + 1}:{SIZE + 32},1:{SIZE}]"
    assert header["IMAGETYP"] == "object"
    image = calibrated(survey, plan)
    sky = np.median(image)
    assert sky == pytest.approx(plan.sky, rel=0.1, abs=3)
    # Neighbouring differences have no stars in them to speak of.
    noise = np.diff(image[:, ::2], axis=1).ravel()
    robust = 1.4826 * np.median(np.abs(noise)) / np.sqrt(2)
    assert robust == pytest.approx(np.sqrt(sky + survey.camera.read_noise**2), rel=0.06)


def test_photometry_of_stars_gives_their_magnitudes(survey):
    plan = lights(survey, "template")[1]
    image = calibrated(survey, plan)
    stars = survey.sources(plan)
    stars = stars[(stars["re"].fillna(0) == 0) & (stars["flux"] > 20_000) & (stars["flux"] < 400_000)]
    stars = stars[stars["x"].between(30, SIZE - 30) & stars["y"].between(30, SIZE - 30)]
    everything = survey.sources(plan)
    alone = []
    for x, y, flux in stars[["x", "y", "flux"]].to_numpy():
        near = np.hypot(everything["x"] - x, everything["y"] - y) < 14
        columns = [abs(c[0] - x) < 12 for c in survey.camera.bad_columns]
        alone.append(everything.loc[near, "flux"].sum() < 1.01 * flux and not any(columns))
    stars = stars[alone]
    assert len(stars) >= 3
    found = matched_flux(image, survey.psf(plan), stars["x"], stars["y"])
    ratio = found / stars["flux"].to_numpy()
    # Cosmic rays may hit one; noise is below a percent; 0.5 % of the light is in the ring.
    assert np.median(ratio) == pytest.approx(1, abs=0.012)
    mag = survey.zero_point(plan) - 2.5 * np.log10(found)
    assert np.median(np.abs(mag - stars["mag"])) < 0.02


def test_the_header_points_a_few_pixels_off(survey):
    catalogue = survey.catalogue("sim-01")
    offsets = []
    for plan in lights(survey)[:12:4]:
        wcs = survey.header_wcs(plan)
        plane = survey.plane_wcs(plan.field)
        x, y = survey.to_detector(plan, *plane.all_world2pix(catalogue["ra"], catalogue["dec"], 0))
        told = np.array(wcs.all_world2pix(catalogue["ra"], catalogue["dec"], 0))
        if plan.field != "sim-01":
            continue
        inside = (x > 0) & (x < SIZE) & (y > 0) & (y < SIZE)
        difference = (told - np.array([x, y]))[:, inside]
        offsets.append(np.hypot(*np.median(difference, axis=1)))
        # What is left after a shift: a turn of a fraction of a pixel and the distortion.
        assert np.hypot(*difference.std(axis=1)) < 0.6
    assert 0.2 < np.mean(offsets) < 10


def test_catalogue_stars_stand_where_the_frame_has_them(survey):
    """Centroids of bright stars against the catalogue's positions, through the true geometry."""
    from astrid_pipeline_tests.simulation.test_pairs import centroids

    plan = lights(survey, "template")[1]
    image = calibrated(survey, plan) - plan.sky
    catalogue = survey.catalogue(plan.field)
    x, y = survey.to_detector(
        plan, *survey.plane_wcs(plan.field).all_world2pix(catalogue["ra"], catalogue["dec"], 0)
    )
    flux = 10 ** (0.4 * (survey.zero_point(plan) - catalogue["mag_r" if plan.filter == "r" else "mag_g"]))
    good = (x > 25) & (x < SIZE - 25) & (y > 25) & (y < SIZE - 25) & (flux > 15_000) & (flux < 400_000)
    assert good.sum() >= 5
    found = centroids(image, x[good], y[good])
    assert np.median(np.hypot(found[:, 0] - x[good], found[:, 1] - y[good])) < 0.05


def test_truth_flux_and_snr_are_found_in_the_frame(survey, truth):
    """A matched filter on frames minus all that does not change finds the light there is, with the truth's errors."""
    pulls = []
    for plan in lights(survey)[::3]:
        if plan.satellite:
            continue
        rows = truth[(truth["exposure_id"] == plan.exposure_id) & (truth["kind"] == "point")]
        rows = rows[
            rows["x"].between(20, SIZE - 20) & rows["y"].between(20, SIZE - 20) & rows["total_mag"].notna()
        ]
        psf = survey.psf(plan)
        own = np.zeros(survey.camera.shape, np.float32)
        now = 10 ** (0.4 * (survey.zero_point(plan) - rows["total_mag"]))
        render(own, rows.assign(flux=now)[["x", "y", "flux"]], psf)
        left = calibrated(survey, plan) - (survey.expected(plan) - own)
        found = matched_flux(left, psf, rows["x"], rows["y"])
        pulls.append((found - now) / (rows["flux"].abs() / rows["snr"]))
    pull = np.concatenate(pulls)
    pull = pull[np.abs(pull) < 6]  # cosmic rays
    assert len(pull) > 60
    assert pull.mean() == pytest.approx(0, abs=0.3)
    # Even weights are a little worse than the best ones on bright galaxies, and the sky is measured too.
    assert 0.85 < 1.4826 * np.median(np.abs(pull - np.median(pull))) < 1.25


def test_supernovae_have_light_curves_and_the_faded_are_negative(survey, truth):
    first = nights_of(survey.options)[1][0]
    truth = truth[truth["night"] >= first]
    assert {"supernova", "fading", "variable_star", "agn", "asteroid"} <= set(truth["class"])
    assert (truth.loc[truth["class"] == "fading", "flux"] < 0).all()
    new = truth[truth["class"].isin(["supernova", "hostless"])]
    assert (new["flux"] > 0).all()
    curve = new.groupby(["object_id", "filter", "night"])["mag"].mean().unstack()
    assert curve.notna().all(axis=1).any()
    assert (np.ptp(curve.dropna().to_numpy(), axis=1) > 0.1).any()
    # Within a night a supernova stands still in brightness and on the sky.
    still = new.groupby(["object_id", "filter", "night"])[["mag", "ra", "dec"]].agg(np.ptp)
    assert still["mag"].max() < 0.12
    assert still[["ra", "dec"]].to_numpy().max() < 1e-9
    # The same object has the same place in every frame's own pixels through that frame's geometry.
    assert new.groupby("object_id")["x"].agg(np.ptp).max() > 1


def test_asteroids_move_on_straight_lines(survey, truth):
    truth = truth[(truth["field"] == "sim-01") & (truth["night"] == nights_of(survey.options)[1][0])]
    movers = truth[truth["kind"] == "moving"]
    assert "sim-01-slow" in set(movers["object_id"])
    for _, track in movers.groupby("object_id"):
        if len(track) < 4:
            continue
        hours = 24 * (track["mjd"] - track["mjd"].mean())
        for axis in ("ra", "dec"):
            slope, constant = np.polyfit(hours, track[axis], 1)
            assert np.abs(track[axis] - slope * hours - constant).max() * 3600 < 0.05
        rate = np.hypot(
            np.polyfit(hours, track["ra"] * np.cos(np.radians(track["dec"].mean())), 1)[0] * 3600,
            np.polyfit(hours, track["dec"], 1)[0] * 3600,
        )
        np.testing.assert_allclose(track["length"], rate * survey.options.exposure / 3600, rtol=0.02)


def test_artefacts_are_told_on_request(survey, truth):
    plan = next(p for p in lights(survey) if p.satellite)
    plain = truth[(truth["field"] == plan.field) & (truth["night"] == plan.night)]
    assert (plain["class"] == "satellite_trail").sum() == 1
    full = survey.truth(plan.field, plan.night, artefacts=True)
    rays = full[(full["class"] == "cosmic_ray") & (full["exposure_id"] == plan.exposure_id)]
    assert len(rays) == len(survey.cosmic_rays(plan))
    image = calibrated(survey, plan)
    ray = rays.loc[rays["flux"].idxmax()]
    y, x = round(ray["y"]), round(ray["x"])
    assert image[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3].max() > plan.sky + 300


def test_template_season_differs_from_itself_only_by_noise_and_what_varies(survey, truth):
    truth = truth[truth["night"] == nights_of(survey.options)[0][0]]
    assert not (truth["class"] == "supernova").any()
    still = truth[truth["kind"] == "point"]
    assert (still["snr"] < 1).all()


def test_impossible_surveys_are_refused():
    with pytest.raises(ConfigError, match="filters q"):
        SurveyOptions(filters=("g", "q"))
    with pytest.raises(ConfigError, match="size=10"):
        SurveyOptions(size=10)
    with pytest.raises(ConfigError, match="template season"):
        SurveyOptions(template_gap=2)


def test_unknown_names_are_refused(survey):
    with pytest.raises(InputError, match="no such exposure"):
        survey.expose("nothing")
    with pytest.raises(InputError, match="no such field"):
        survey.truth("nowhere", "2026-03-14")
    assert len(survey.truth("sim-01", "2020-01-01")) == 0
