"""Finding stars: positions, fluxes, and what is not taken for a star."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from astrid_pipeline.errors import PixelError
from astrid_pipeline.imaging.frame import Frame
from astrid_pipeline.imaging.mask import Mask
from astrid_pipeline.imaging.moments import cut_stamps, window_moments
from astrid_pipeline.imaging.stars import (
    COLUMNS,
    detect_stars,
    find_sources,
    isolated,
)
from astrid_pipeline_tests.imaging.moffat_fields import add, moffat, sersic, star_field


def test_positions_and_fluxes_are_those_of_the_stars() -> None:
    field = star_field(512, 300)
    stars = detect_stars(Frame(field.data))
    distance, index = cKDTree(np.column_stack([field.x, field.y])).query(stars[["x", "y"]])
    assert list(stars.columns) == list(COLUMNS)
    assert len(stars) > 40
    # Two detections may be noise on a bright star's flank or a blend; no more.
    assert (distance > 0.5).sum() <= 2
    real = distance <= 0.5
    bright = real & (stars["snr"] > 100).to_numpy()
    dx, dy = stars["x"] - field.x[index], stars["y"] - field.y[index]
    for offset in (dx[bright], dy[bright]):
        assert abs(np.median(offset)) < 0.01
        assert 1.4826 * np.median(np.abs(offset)) < 0.03
    # A Gaussian's flux of a Moffat star: one share for all, whatever the brightness.
    ratio = (stars["flux"] / field.flux[index])[real]
    assert 0.8 < ratio.median() < 1.0
    assert 1.4826 * np.median(np.abs(ratio - ratio.median())) < 0.04
    assert (np.diff(stars["flux"]) <= 0).all()


def test_a_position_does_not_depend_on_where_in_the_pixel_the_star_lies() -> None:
    offsets = np.linspace(-0.5, 0.5, 11)
    stamps = np.stack([moffat(10, 2.2, dx=d, dy=-0.7 * d) for d in offsets])
    found = window_moments(stamps, np.ones((21, 21)), 1.1)
    assert np.abs(found.dx - offsets).max() < 0.01
    assert np.abs(found.dy + 0.7 * offsets).max() < 0.01
    assert np.ptp(found.sigma) < 0.02 * found.sigma.mean()


@pytest.mark.parametrize(("major", "minor", "angle"), [(1.5, 1.5, 0.0), (2.0, 1.3, 30.0), (1.8, 1.2, -70.0)])
def test_moments_of_a_gaussian_are_exact(major: float, minor: float, angle: float) -> None:
    axis = np.arange(-20, 21)
    x, y = np.meshgrid(axis - 0.3, axis + 0.2)
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    u, v = c * x + s * y, -s * x + c * y
    image = 1000 / (2 * np.pi * major * minor) * np.exp(-0.5 * ((u / major) ** 2 + (v / minor) ** 2))
    found = window_moments(image[None], np.ones((1, 1, 1)), 1.6)
    assert found.dx[0] == pytest.approx(0.3, abs=2e-3)
    assert found.dy[0] == pytest.approx(-0.2, abs=2e-3)
    assert found.sigma[0] == pytest.approx(np.sqrt(major * minor), rel=3e-3)
    assert found.elongation[0] == pytest.approx(major / minor, rel=0.01)
    assert found.flux[0] == pytest.approx(1000, rel=0.01)
    if major != minor:
        assert (found.angle[0] - angle + 90) % 180 - 90 == pytest.approx(0, abs=1.0)


def slow_moments(image: np.ndarray, sigma: float) -> tuple[float, float, float]:
    """The obvious twin: loops over pixels, one stamp."""
    half = image.shape[0] // 2
    dx = dy = 0.0
    for _ in range(4):
        total = mean_x = mean_y = 0.0
        for j in range(image.shape[0]):
            for i in range(image.shape[1]):
                x, y = i - half - dx, j - half - dy
                weight = image[j, i] * np.exp(-0.5 * (x * x + y * y) / sigma**2)
                total, mean_x, mean_y = total + weight, mean_x + weight * x, mean_y + weight * y
        dx, dy = dx + 2 * mean_x / total, dy + 2 * mean_y / total
    return dx, dy, total


def test_moments_do_what_their_slow_twin_does() -> None:
    rng = np.random.default_rng(1)
    stamps = np.stack([500 * moffat(6, 2.5, dx=a, dy=b) for a, b in rng.uniform(-0.6, 0.6, (5, 2))])
    stamps += rng.normal(0, 1, stamps.shape)
    found = window_moments(stamps.astype(np.float32), np.ones((13, 13), np.float32), 1.2)
    for k in range(5):
        dx, dy, _ = slow_moments(stamps[k], 1.2)
        assert found.dx[k] == pytest.approx(dx, abs=1e-3)
        assert found.dy[k] == pytest.approx(dy, abs=1e-3)


def test_galaxies_saturated_and_masked_stars_are_not_taken_for_stars() -> None:
    field = star_field(512, 250, seed=3)
    image = field.data.astype(float)
    rng = np.random.default_rng(4)
    places = [(60, 70), (200, 420), (330, 100), (440, 300), (120, 250)]
    for x, y in places:
        image += rng.poisson(sersic(image.shape, x, y, 4.0, 1.0, 3e4))
    clipped = np.minimum(image, 20_000)
    mask = np.zeros(image.shape, np.int32)
    bright = int(np.argmax(np.where(image[20:-20, 20:-20] < 15_000, image[20:-20, 20:-20], 0)))
    row, column = (int(v) + 20 for v in np.unravel_index(bright, (472, 472)))
    mask[row, column] = Mask.BAD_PIXEL
    stars = detect_stars(Frame(clipped, mask=mask, meta={"saturation": 20_000.0}))
    everything = detect_stars(Frame(clipped, mask=mask, meta={"saturation": 20_000.0}), only_stars=False)
    tree = cKDTree(stars[["x", "y"]])
    assert (tree.query(places)[0] > 3).all()
    assert (cKDTree(everything[["x", "y"]]).query(places)[0] < 2).all()
    assert stars["peak"].max() < 0.85 * 20_000
    assert tree.query([column, row])[0] > 2
    assert len(everything) > len(stars) > 20
    assert everything["star"].sum() == len(stars)


def test_stars_beside_a_neighbour_are_not_used() -> None:
    x, y = np.array([10.0, 14.0, 100.0, 103.0, 200.0]), np.array([10.0, 10.0, 50.0, 50.0, 90.0])
    flux = np.array([100.0, 5.0, 100.0, 40.0, 70.0])
    assert isolated(x, y, flux, 5.0).tolist() == [True, False, False, False, True]


def test_an_empty_frame_has_no_stars() -> None:
    rng = np.random.default_rng(5)
    stars = detect_stars(Frame(rng.normal(0, 1, (128, 128))))
    assert list(stars.columns) == list(COLUMNS)
    assert len(stars) == 0


def test_a_crowded_frame_does_not_overrun_the_finder() -> None:
    """Source Extractor's buffers hold some 300,000 pixels and 1,000 sources by default and stop at more."""
    rng = np.random.default_rng(6)
    image = rng.normal(0, 1, (700, 700))
    for x, y in rng.uniform(0, 699, (9000, 2)):
        add(image, rng.uniform(50, 4000) * moffat(5, 2.5), x, y)
    found = find_sources(image.astype(np.float32), 1.0)
    assert len(found) > 1500


def test_what_the_finder_cannot_do_is_said() -> None:
    with pytest.raises(PixelError, match="no sources could be found"):
        find_sources(np.zeros(10, np.float32), 1.0)


def test_want_of_memory_is_not_blamed_on_the_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    import sep

    def none_left(*args: object, **options: object) -> None:
        raise MemoryError  # as sep does it, without a word

    monkeypatch.setattr(sep, "extract", none_left)
    with pytest.raises(MemoryError):
        find_sources(np.zeros((32, 32), np.float32), np.ones((32, 32), np.float32), None, 5.0)


def test_stamps_beyond_the_edge_are_filled() -> None:
    image = np.arange(30.0).reshape(5, 6)
    stamps = cut_stamps(image, [0, 5, 2], [0, 4, 2], 3, fill=-1)
    assert stamps[0].tolist() == [[-1, -1, -1], [-1, 0, 1], [-1, 6, 7]]
    assert stamps[1].tolist() == [[22, 23, -1], [28, 29, -1], [-1, -1, -1]]
    assert stamps[2].tolist() == image[1:4, 1:4].tolist()


def test_a_prepared_frames_stars_are_those_that_a_fresh_search_finds() -> None:
    from astrid_pipeline.imaging.quality import prepare

    field = star_field(512, 300)
    ready = prepare(Frame(field.data, meta={"gain": 1.0, "read_noise": 5.0}))
    kept, fresh = detect_stars(ready), detect_stars(ready.replace())
    assert list(kept.columns) == list(fresh.columns)
    tree = cKDTree(kept[["x", "y"]])
    distance, index = tree.query(fresh[["x", "y"]])
    near = distance < 0.02
    # The search against the sky's noise alone sees a little deeper beside bright stars.
    assert near.mean() > 0.97
    assert abs(len(kept) - len(fresh)) <= 0.05 * len(fresh)
    errors = kept["flux_err"].to_numpy()[index[near]] / fresh["flux_err"].to_numpy()[near]
    assert np.median(errors) == pytest.approx(1, abs=0.02)
    # A bright star's error holds its own photons either way.
    assert np.abs(errors - 1).max() < 0.3


def test_a_crowded_image_does_not_overrun_seps_limits(monkeypatch):
    import sep

    from astrid_pipeline.imaging import stars

    rng = np.random.default_rng(5)
    image = rng.normal(0, 1, (300, 300)).astype(np.float32)
    image[20:280, 20:280] += 30  # a nebula: one object of 67,600 px
    nothing = np.zeros(image.shape, bool)
    before = sep.get_extract_pixstack()
    try:
        sep.set_extract_pixstack(20_000)
        with pytest.raises(Exception, match="pixel buffer full"):
            sep.extract(image, 5.0, err=1.0)
        assert len(stars.extract_plain(image, 1.0, nothing, 5.0)) >= 1
    finally:
        sep.set_extract_pixstack(before)
    # Where it overlaps too much even so, only what stands out of the crowd is found, or the reason is told.
    image[100:104, 100:104] += 400
    wanted = []

    def full_below(limit: float):
        original = sep.extract

        def extract(data, threshold, **options):
            wanted.append(threshold)
            if threshold < limit:
                raise Exception("object deblending overflow: limit of 20000 sub-objects reached")
            return original(data, threshold, **options)

        return extract

    with monkeypatch.context() as patch:
        patch.setattr(sep, "extract", full_below(40.0))
        (found,) = stars.extract_plain(image, 1.0, nothing, 5.0)
    assert (round(found["x"]), round(found["y"])) in {(101, 101), (102, 102), (101, 102), (102, 101)}
    assert wanted == [5.0, 10.0, 25.0, 100.0]
    with monkeypatch.context() as patch:
        patch.setattr(sep, "extract", full_below(1e9))
        with pytest.raises(PixelError, match="overlap too much"):
            stars.extract_plain(image, 1.0, nothing, 5.0)
