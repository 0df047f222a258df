"""The model that comes with AstrID."""

from __future__ import annotations

import numpy as np
import pytest

from astrid_pipeline.learning import load_model
from astrid_pipeline.learning.data import image_seed, simulate_difference
from astrid_pipeline.learning.infer import detect
from astrid_pipeline.learning.matching import RIGHT, match
from astrid_pipeline.learning.schema import CLASSES
from astrid_pipeline.learning.weights import PACKAGED
from astrid_pipeline_tests.learning.toy_epochs import toys


@pytest.fixture(scope="module")
def model():
    return load_model()


def test_it_is_small_whole_and_described(model):
    assert PACKAGED.stat().st_size < 6e6
    assert 1.9e6 < sum(p.numel() for p in model.network.parameters()) < 2.3e6
    assert model.real_bogus is not None
    assert model.classical is not None
    assert model.ensemble is not None
    # A night is judged by itself alone, whatever nights were made before it.
    assert model.epochs is not None
    assert set(model.epochs.facts["groups"]) == {"night", "filters"}
    assert 0 < model.threshold < 1
    card = PACKAGED.with_name("MODEL_CARD.md").read_text()
    assert card.splitlines()[0] == f"# {model.name} {model.version}"
    for part in ("Limits", "Recall by true S/N", "Measured on"):
        assert part in card


def test_a_nights_other_exposures_raise_what_stays_above_what_hit_once(model):
    table = toys(3, 100)
    even = np.full(len(table), 0.6)
    after = model.epochs(table, even)
    seen = (table["night_count"] > 0).to_numpy()
    stays, hit = ((table["what"] == what).to_numpy() for what in ("stays", "hit"))
    assert np.quantile(after[seen & stays], 0.05) > model.threshold > np.median(after[seen & hit])
    assert (after[~seen] == 0.6).all()
    # What the detector is sure of is not thrown away because it has gone: it may be an asteroid.
    sure = model.epochs(table, np.full(len(table), 0.9))
    asteroids = seen & (table["what"] == "asteroid").to_numpy()
    assert (sure[asteroids] > model.threshold).all()


@pytest.mark.slow
def test_it_finds_what_was_put_into_skies_it_never_saw(model):
    found = asked = false = 0
    area = 0.0
    for i in range(3):
        image = simulate_difference(image_seed(99, "packaged", i), (256, 256))
        detections = detect(image.difference, image.candidates, model, passes=2)
        verdict, _ = match(detections, image.truth, min_snr=7)
        truth = image.truth
        asked += int((truth["label"].isin(CLASSES) & (truth["snr"] >= 7) & truth["usable"]).sum())
        found += int((verdict == RIGHT).sum())
        false += int((verdict == 0).sum())
        area += 256**2 * 1e-6
        assert detections["score"].between(0, 1).all()
        assert np.isfinite(detections["uncertainty"]).all()
        assert (detections["model_version"] == model.version).all()
    # Far below what the card says, since three small images say little; far above what a broken model reaches.
    assert asked >= 10
    assert found / asked > 0.7
    assert false < 0.35 * (found + false)
