"""A night's exposures judge one another's detections: through the files, across frames that are not aligned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from astropy.wcs import WCS

from astrid_pipeline.errors import ModelError
from astrid_pipeline.imaging.flux_planes import ScorePlanes
from astrid_pipeline.imaging.frame import Difference
from astrid_pipeline.imaging.mask import Mask
from astrid_pipeline.learning import load_model
from astrid_pipeline.learning.epochs import fit_epochs
from astrid_pipeline.learning.schema import DETECTIONS
from astrid_pipeline.night.differences import detect_night
from astrid_pipeline.night.epochs import judge_by_the_night
from astrid_pipeline.resources.frames import FrameSpool
from astrid_pipeline_tests.learning.helpers import toy_difference
from astrid_pipeline_tests.learning.toy_epochs import SIGMA, toys

SHAPE = (96, 96)
#: In the first exposure, px: what stays, what hits it once, what lies where the others do not look, and what stays on a
#: pixel that the others cannot use.
STAYS, HIT, OUTSIDE, HIDDEN = (40.3, 51.6), (60.0, 30.0), (5.0, 40.0), (25.0, 70.0)
SHIFT = (11.0, -6.0)


@pytest.fixture(scope="module")
def model():
    first, second = toys(1, 250), toys(2, 150)
    return load_model().replace(epochs=fit_epochs(first, first["real"], second, second["real"]))


def exposure(
    number: int, sources: list[tuple[float, float, float]], shift: tuple[float, float]
) -> Difference:
    """A difference whose frame is shifted against the first's, with points of known S/N at the first's pixels."""
    plain, _ = toy_difference(
        number, SHAPE, sources=0, exposure_id=f"x{number}", mjd=61_000.0 + 0.01 * number
    )
    yy, xx = np.mgrid[: SHAPE[0], : SHAPE[1]]
    score = plain.score.copy()
    for x, y, snr in sources:
        u, v = x - shift[0], y - shift[1]
        score += snr * np.exp(-((xx - u) ** 2 + (yy - v) ** 2) / (2 * SIGMA**2)).astype(np.float32)
    wcs = WCS(plain.wcs.to_header())
    wcs.wcs.crpix = np.array(wcs.wcs.crpix) - np.array(shift)
    mask = np.zeros(SHAPE, np.int32)
    if number:
        mask[round(HIDDEN[1] - shift[1]), round(HIDDEN[0] - shift[0])] = int(Mask.BAD_PIXEL)
    return plain.replace(score=score, wcs=wcs, mask=mask)


def night() -> dict[str, Difference]:
    first = [(*place, 10.0) for place in (STAYS, HIT, OUTSIDE, HIDDEN)]
    later = [(*STAYS, 9.0), (*HIDDEN, 9.0)]
    return {
        "x0": exposure(0, first, (0.0, 0.0)),
        "x1": exposure(1, later, SHIFT),
        "x2": exposure(2, later, SHIFT),
    }


def found(differences: dict[str, Difference]) -> dict[str, pd.DataFrame]:
    """What one exposure alone says: even odds for everything, the same for each."""
    tables = {}
    for key, difference in differences.items():
        shift = (0.0, 0.0) if key == "x0" else SHIFT
        places = [STAYS, HIT, OUTSIDE, HIDDEN] if key == "x0" else [STAYS]
        x, y = (np.array([p[i] - shift[i] for p in places]) for i in (0, 1))
        ra, dec = difference.wcs.all_pix2world(x, y, 0)
        plain = {c.name: 0 for c in DETECTIONS.columns if c.kind.startswith(("int", "bool"))}
        rows = pd.DataFrame(
            {"x": x, "y": y, "ra": ra, "dec": dec, "peak_score": 10.0, "score": 0.6, "p_variable": 0.1}
        ).assign(
            **plain, p_moving=0.1, exposure_id=key, detection_id=[f"{key}-D{i:04d}" for i in range(len(x))]
        )
        tables[key] = DETECTIONS.conform(rows)
    return tables


def at(table: pd.DataFrame, place: tuple[float, float]) -> pd.DataFrame:
    return table[np.hypot(table["x"] - place[0], table["y"] - place[1]) < 0.5]


def test_what_is_in_all_exposures_is_raised_and_what_is_in_one_is_not(model):
    differences = night()
    after = judge_by_the_night(found(differences), differences, model.replace(threshold=0.5))
    (stays,) = at(after["x0"], STAYS)["score"]
    assert stays > 0.9
    assert after["x1"]["score"].min() > 0.9
    assert not len(at(after["x0"], HIT))
    low = judge_by_the_night(found(differences), differences, model.replace(threshold=0.0))["x0"]
    (hit,) = at(low, HIT)["score"]
    assert hit < 0.2
    # Where no other exposure looks, or can be used, not a bit of the score has changed.
    for place in (OUTSIDE, HIDDEN):
        assert at(low, place)["score"].tolist() == [0.6]
    assert low["score"].is_monotonic_decreasing
    assert low["detection_id"].tolist() == [f"x0-D{i:04d}" for i in range(4)]


def test_alone_a_night_of_one_exposure_is_as_it_was(model):
    differences = {"x0": night()["x0"]}
    before = found(differences)
    after = judge_by_the_night(before, differences, model.replace(threshold=0.5))
    pd.testing.assert_frame_equal(after["x0"], before["x0"], check_exact=True)
    none = {"x0": DETECTIONS.empty()}
    assert judge_by_the_night(none, differences, model)["x0"].equals(DETECTIONS.empty())


def test_neither_order_nor_the_way_through_files_matters(model, tmp_path: Path):
    differences = night()
    low = model.replace(threshold=0.0)
    expected = judge_by_the_night(found(differences), differences, low)
    turned = dict(reversed(differences.items()))
    for key, table in judge_by_the_night(dict(reversed(found(differences).items())), turned, low).items():
        pd.testing.assert_frame_equal(table, expected[key], check_exact=True)
    with FrameSpool(tmp_path) as spool:
        for key, difference in differences.items():
            spool[key] = difference
        after = judge_by_the_night(found(differences), spool, low)
    for key, table in after.items():
        # Files keep the significance in steps of 1/64 σ.
        np.testing.assert_allclose(table["score"], expected[key]["score"], atol=0.05)


def test_a_detector_that_wants_earlier_nights_is_refused(model):
    first, second = (toys(n, 250).assign(past_nights=1.0) for n in (1, 2))
    first, second = (
        t.assign(**dict.fromkeys(("past_mean", "past_largest", "past_opposite", "past_share"), 0.0))
        for t in (first, second)
    )
    past = fit_epochs(first, first["real"], second, second["real"], groups=("night", "past"))
    differences = night()
    with pytest.raises(ModelError, match="past_largest"):
        judge_by_the_night(found(differences), differences, model.replace(epochs=past))


def test_detections_of_a_night_are_made_in_two_steps(model):
    """The whole way: network, second stage, the other exposures; and without the part as before."""
    differences = {}
    for number in range(2):
        # The same seed, the same noise and sources: whatever the detector sees in one is in the other.
        one, _ = toy_difference(7, SHAPE, sources=5, exposure_id=f"x{number}", mjd=61_000.0 + 0.01 * number)
        differences[f"x{number}"] = one
    from astrid_pipeline.imaging.candidates import find_candidates

    candidates = pd.concat([find_candidates(d) for d in differences.values()], ignore_index=True)
    bare = model.replace(epochs=None)
    once = detect_night(differences, candidates, bare)
    twice = detect_night(differences, candidates, model)
    assert not once.problems
    assert not twice.problems
    for key in differences:
        assert set(zip(once.products[key]["x"], once.products[key]["y"], strict=True)) <= set(
            zip(twice.products[key]["x"], twice.products[key]["y"], strict=True)
        )
        assert twice.products[key]["uncertainty"].notna().all()
        assert (twice.products[key]["score"] >= model.threshold).all()
    assert sum(len(t) for t in twice.products.values()) > 0


def test_of_a_stored_night_the_significance_alone_is_read(tmp_path: Path):
    from astrid_pipeline.imaging import io
    from astrid_pipeline.imaging.flux_planes import read_score_planes

    one = night()["x1"]
    path = io.write_difference(one, tmp_path / "d.fits")
    whole = io.read_difference(path)
    ra, dec = one.wcs.all_pix2world([30.0], [50.0], 0)
    part = read_score_planes(path, ra, dec)
    assert isinstance(part, ScorePlanes)
    np.testing.assert_array_equal(part.score, whole.score)
    np.testing.assert_array_equal(part.mask, whole.mask)
    assert dict(part.meta) == dict(whole.meta)
    far = read_score_planes(path, np.array([10.0]), np.array([-30.0]))
    assert not far.score.any()
