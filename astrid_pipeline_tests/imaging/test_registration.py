from __future__ import annotations

import numpy as np
import pytest

from astrid_pipeline.errors import RegistrationError
from astrid_pipeline.imaging.registration import register
from astrid_pipeline.imaging.residual_field import fit_field
from astrid_pipeline.imaging.star_match import match, pattern, vote
from astrid_pipeline_tests.imaging import star_fields as sf

SHAPE = (512, 512)


def moved_by(matrix=((1.0, 0.0), (0.0, 1.0)), shift=(0.0, 0.0), cubic=0.0):
    m = np.asarray(matrix, float)

    def function(x, y):
        u, v = np.asarray(x, float) - 256, np.asarray(y, float) - 256
        r2 = (u**2 + v**2) / 256**2
        du, dv = cubic * r2 * u / 256, cubic * r2 * v / 256
        return (
            m[0, 0] * u + m[0, 1] * v + 256 + shift[0] + du,
            m[1, 0] * u + m[1, 1] * v + 256 + shift[1] + dv,
        )

    return function


def turn(degrees: float, scale: float = 1.0) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return scale * np.array([[c, -s], [s, c]])


def pair(rng, function, *, number=160, wcs=(True, True), shape=SHAPE, science=None, reference=None):
    """Return science and reference frame of one star field, the reference's stars moved by `function`."""
    places = sf.positions(rng, number, shape, margin=100)
    flux = sf.fluxes(rng, len(places))
    there = np.column_stack(function(places[:, 0], places[:, 1]))
    grid = sf.tan_wcs(shape)
    return (
        sf.frame(
            rng, shape, places, flux, wcs=grid if wcs[0] else None, exposure_id="science", **(science or {})
        ),
        sf.frame(
            rng,
            shape,
            there,
            flux,
            fwhm=2.3,
            sigma=4.0,
            wcs=grid if wcs[1] else None,
            exposure_id="reference",
            **(reference or {}),
        ),
    )


def map_error(found, function, shape=SHAPE) -> np.ndarray:
    """Return the rms per axis, over the frame, of the map found against the truth."""
    x, y = np.meshgrid(np.linspace(10, shape[1] - 11, 15), np.linspace(10, shape[0] - 11, 15))
    u, v = found.function(x, y)
    wanted = function(x, y)
    return np.array([np.sqrt(np.mean((u - wanted[0]) ** 2)), np.sqrt(np.mean((v - wanted[1]) ** 2))])


CASES = {
    "nothing": (moved_by(), "wcs", 0.002),
    "a tenth": (moved_by(shift=(0.1, 0.0)), "wcs+stars", 0.01),
    "a quarter": (moved_by(shift=(0.25, -0.15)), "wcs+stars", 0.01),
    "some pixels": (moved_by(shift=(-7.3, 4.6)), "wcs shifted+stars", 0.01),
    "many pixels": (moved_by(shift=(61.2, -48.9)), "wcs shifted+stars", 0.01),
    "a small turn": (moved_by(turn(0.4, 1.001), (2.1, 0.7)), None, 0.02),
    "a distortion": (moved_by(shift=(0.3, 0.1), cubic=0.8), None, 0.04),
}


@pytest.mark.parametrize("name", CASES)
def test_the_true_map_is_found(name: str) -> None:
    function, source, limit = CASES[name]
    science, reference = pair(np.random.default_rng(1), function)
    found = register(reference, science)
    assert (map_error(found, function) < limit).all()
    if source:
        assert found.source == source
    assert found.n_matched > 60
    assert max(found.dx_rms, found.dy_rms) < 0.05


def test_the_residuals_quoted_are_those_of_stars_not_used() -> None:
    """Centroid errors of both frames are known here; what is quoted must be them, not less for having been fitted."""
    rng = np.random.default_rng(2)
    science, reference = pair(rng, moved_by(turn(0.1), (0.5, 0.5)), number=60)
    quoted = []
    for _ in range(4):
        found = register(reference, science)
        quoted.append((found.dx_rms, found.dy_rms))
        science, reference = pair(rng, moved_by(turn(0.1), (0.5, 0.5)), number=60)
    assert 0.008 < np.mean(quoted) < 0.05


def test_identical_grids_stay_untouched() -> None:
    science, reference = pair(np.random.default_rng(3), moved_by())
    found = register(reference, science)
    assert found.is_identity
    assert found.degree == -1


def test_wavy_distortions_get_a_field() -> None:
    def function(x, y):
        x, y = np.asarray(x, float), np.asarray(y, float)
        return x + 0.15 * np.sin(x / 60) * np.cos(y / 80), y + 0.15 * np.cos(x / 70 + 1)

    science, reference = pair(np.random.default_rng(4), function, number=500)
    found = register(reference, science)
    assert found.source.endswith("+field")
    assert (map_error(found, function) < 0.04).all()


@pytest.mark.parametrize("wcs", [(False, True), (True, False), (False, False)])
@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("close", moved_by(shift=(0.49, 1.73))),
        ("far", moved_by(shift=(80.0, -35.0))),
        ("turned", moved_by(turn(25.0, 1.05), (12.0, 5.0))),
        ("mirrored", moved_by(turn(100.0) @ np.diag([-1.0, 1.0]))),
    ],
)
def test_without_a_wcs_the_stars_tell(name: str, function, wcs: tuple[bool, bool]) -> None:
    science, reference = pair(np.random.default_rng(5), function, wcs=wcs)
    found = register(reference, science)
    assert (map_error(found, function) < 0.03).all()
    assert found.source.startswith("pattern" if name in ("turned", "mirrored") else ("shift", "identity"))


def test_a_variable_star_and_a_fast_one_do_not_pull() -> None:
    rng = np.random.default_rng(6)
    places = sf.positions(rng, 40, SHAPE)
    flux = sf.fluxes(rng, len(places))
    brightest = np.argmax(flux)
    then = places.copy()
    then[brightest] += (0.8, -0.5)
    other = flux.copy()
    other[3] *= 5
    wcs = sf.tan_wcs(SHAPE)
    science = sf.frame(rng, SHAPE, places, flux, wcs=wcs)
    reference = sf.frame(rng, SHAPE, then, other, wcs=wcs)
    assert (map_error(register(reference, science), moved_by()) < 0.02).all()


def test_few_stars_on_one_grid_keep_it() -> None:
    rng = np.random.default_rng(7)
    wcs = sf.tan_wcs((128, 128))
    science = sf.frame(rng, (128, 128), np.array([[40.0, 50.0]]), np.array([3e4]), wcs=wcs)
    reference = sf.frame(rng, (128, 128), np.array([[40.0, 50.0]]), np.array([3e4]), wcs=wcs)
    found = register(reference, science)
    assert found.is_identity
    assert found.n_matched == 0
    assert (found.n_science, found.n_reference) == (1, 1)


def test_few_stars_without_a_wcs_are_an_error_with_counts() -> None:
    rng = np.random.default_rng(8)
    science = sf.frame(rng, (128, 128), np.array([[40.0, 50.0]]), np.array([3e4]), exposure_id="new")
    reference = sf.frame(
        rng, (128, 128), np.array([[40.0, 50.0], [90.0, 20.0]]), np.array([3e4, 3e4]), exposure_id="old"
    )
    with pytest.raises(
        RegistrationError, match=r"old onto new: too few common stars.*1 stars.*2 in the ref.*WCS"
    ):
        register(reference, science)


def test_unrelated_fields_are_an_error() -> None:
    rng = np.random.default_rng(9)
    science, _ = pair(rng, moved_by(), wcs=(False, False))
    other, _ = pair(rng, moved_by(), wcs=(False, False))
    with pytest.raises(RegistrationError, match="too few common stars"):
        register(other, science)


def test_frames_that_do_not_overlap_are_an_error() -> None:
    rng = np.random.default_rng(10)
    science, _ = pair(rng, moved_by())
    away = science.replace(wcs=sf.tan_wcs(SHAPE, ra=151.0))
    with pytest.raises(RegistrationError, match="do not overlap"):
        register(away, science)


def test_the_wcs_alone_can_be_believed() -> None:
    science, reference = pair(np.random.default_rng(11), moved_by(shift=(3.0, 0.0)))
    found = register(reference, science, refine=False)
    assert found.is_identity
    assert np.isnan(found.dx_rms)
    with pytest.raises(RegistrationError, match="no WCS"):
        register(reference.replace(wcs=None), science, refine=False)


def test_the_same_frames_give_the_same_map() -> None:
    science, reference = pair(np.random.default_rng(12), moved_by(turn(0.2), (5.0, 1.0)))
    a, b = register(reference, science), register(reference, science)
    x, y = np.meshgrid(np.arange(0.0, 500, 50), np.arange(0.0, 500, 50))
    np.testing.assert_array_equal(a.function(x, y), b.function(x, y))


def test_matching_is_what_a_loop_over_pairs_does() -> None:
    rng = np.random.default_rng(13)
    a, b = rng.uniform(0, 100, (60, 2)), rng.uniform(0, 100, (80, 2))
    a[5] = np.nan
    distance = np.hypot(*(a[:, None] - b[None]).transpose(2, 0, 1))
    distance[5] = np.inf
    wanted = {
        (i, j)
        for i in range(60)
        for j in range(80)
        if distance[i, j] < 6 and distance[i, j] == distance[i].min() == distance[:, j].min()
    }
    i, j = match(a, b, 6.0)
    assert set(zip(i.tolist(), j.tolist(), strict=True)) == wanted


def test_votes_by_chance_are_not_believed() -> None:
    """Of a hundred pairs of unrelated star lists at most a few may seem to agree: the rule allows one in 300."""
    rng = np.random.default_rng(14)
    believed = sum(
        vote(rng.uniform(0, 1000, (150, 2)), rng.uniform(0, 1000, (150, 2)), (1000, 1000)) is not None
        for _ in range(60)
    )
    assert believed <= 1


def test_patterns_by_chance_are_not_believed() -> None:
    rng = np.random.default_rng(15)
    a, b = rng.uniform(0, 1000, (25, 2)), rng.uniform(0, 1000, (25, 2))
    assert pattern(a[:2], b) is None
    assert pattern(a, b) is None


def test_a_field_is_not_seen_in_noise() -> None:
    """Residuals without a common field yield none; with one, left-out predictions are as good as its true error."""
    rng = np.random.default_rng(16)
    x, y = rng.uniform(0, 1000, (2, 300))
    error = np.full(300, 0.03)
    noise = rng.normal(0, 0.03, (300, 2))
    terms = np.ones((300, 1))
    assert fit_field(x, y, noise, error, terms, 1000) is None
    wave = np.column_stack([0.1 * np.sin(x / 90), 0.1 * np.cos(y / 110)])
    wave -= wave.mean(axis=0)
    field = fit_field(x, y, noise + wave, error, terms, 1000)
    assert field is not None
    predicted = np.column_stack(field(x, y)) + field.correction
    assert np.std(predicted - wave) < 0.02
    left_out = (noise + wave)[field.chosen] - field.residual
    assert np.std(left_out - wave[field.chosen]) < 0.03
