"""Light curves and motions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from astrid_pipeline.simulation import transients

DAYS = np.linspace(-60, 120, 1801)


@pytest.mark.parametrize("band", ["u", "g", "r", "i", "z"])
@pytest.mark.parametrize("stretch", [0.8, 1.2])
def test_supernovae_peak_at_their_peak(band, stretch):
    light = transients.supernova_flux(DAYS, band, stretch=stretch)
    assert light.max() == pytest.approx(1, abs=1e-4)
    assert abs(DAYS[np.argmax(light)]) < 0.1
    assert (light[DAYS < -30.1] == 0).all()
    rising = light[(-25 * stretch < DAYS) & (DAYS < 0)]
    assert (np.diff(rising) > 0).all()
    assert (np.diff(light[DAYS > 0.2]) < 0).all()


def test_blue_light_fades_first():
    later = {band: float(transients.supernova_flux(20.0, band)) for band in ("g", "r", "i")}
    assert later["g"] < later["r"] < later["i"]


@pytest.mark.parametrize("shape", ["sine", "sawtooth", "eclipse"])
def test_periodic_stars_repeat_about_their_mean(shape):
    times = 61000 + np.linspace(0, 0.7, 20_000, endpoint=False)
    away = transients.periodic_magnitude(times, shape, 0.7, 0.5, 0.3)
    assert away.mean() == pytest.approx(0, abs=2e-3)
    assert np.ptp(away) == pytest.approx(0.5, rel=0.02)
    np.testing.assert_allclose(
        transients.periodic_magnitude(times + 7 * 0.7, shape, 0.7, 0.5, 0.3), away, atol=1e-4
    )


def test_an_unknown_light_curve_is_refused():
    with pytest.raises(ValueError, match="triangle"):
        transients.periodic_magnitude(0.0, "triangle", 1.0, 1.0, 0.0)


def test_nuclei_wander_slowly():
    times = np.arange(0, 20_000.0, 1.0)
    away = transients.wandering_magnitude(times, 0.3, 7)
    assert away.std() == pytest.approx(0.3, rel=0.1)
    # A month apart they differ much more than a day apart.
    assert np.std(np.diff(away)) < 0.25 * np.std(away[30:] - away[:-30])


def test_colours_go_through_g_and_r():
    assert transients.colour_magnitude(18.0, 0.6, "r") == pytest.approx(18.0)
    assert transients.colour_magnitude(18.0, 0.6, "g") == pytest.approx(18.6)
    assert transients.colour_magnitude(18.0, 0.6, "i") < 18.0


def test_supernovae_sit_on_galaxies_and_some_had_faded():
    rng = np.random.default_rng(0)
    galaxies = pd.DataFrame(
        {
            "x": rng.uniform(0, 1000, 300),
            "y": rng.uniform(0, 1000, 300),
            "flux": rng.lognormal(3, 1, 300),
            "re": rng.uniform(1, 6, 300),
            "index": rng.choice([1.0, 3.5], 300),
            "axis_ratio": rng.uniform(0.3, 1, 300),
            "angle": rng.uniform(0, 3, 300),
        }
    )
    table = transients.draw_supernovae(
        rng, galaxies, 50, peaks=(61100.0, 61120.0), template_mjd=61050.0, names="f-"
    )
    hosted = table[table["host"] >= 0]
    host = galaxies.iloc[hosted["host"]]
    distance = np.hypot(hosted["x"].to_numpy() - host["x"], hosted["y"].to_numpy() - host["y"])
    np.testing.assert_allclose(distance, hosted["host_distance"])
    assert (hosted["host_distance"] <= 3 * hosted["host_re"]).all()
    assert table["class"].value_counts().to_dict() == {"supernova": 30, "hostless": 10, "fading": 10}
    assert (table.loc[table["class"] == "fading", "peak_mjd"] < 61060).all()
    assert table.loc[table["class"] != "fading", "peak_mjd"].between(61100, 61120).all()
    assert table["object_id"].is_unique
