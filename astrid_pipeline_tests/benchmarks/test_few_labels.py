"""The draws and sums of the comparison with few labels."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from astrid_pipeline_tests.benchmarks import few_labels
from astrid_pipeline_tests.benchmarks.few_labels import Encoder, Pool


def pool(n_real: int, n_bogus: int, *, seed: int = 0) -> Pool:
    rng, n = np.random.default_rng(seed), n_real + n_bogus
    real = np.arange(n) < n_real
    planes = rng.normal(size=(n, 4, few_labels.VIEW, few_labels.VIEW)).astype(np.float32) * 0.1
    planes[real, :, 14:18, 14:18] += 2
    return Pool(planes, np.where(real, 3.0, 0.0)[:, None] + rng.normal(size=(n, 2)), real, np.arange(n) // 2)


@pytest.mark.parametrize(("count", "kinds"), [(10, (5, 5)), (30, (21, 9)), (200, None)])
def test_no_more_than_half_of_a_kind_teaches(count, kinds):
    rows = few_labels.drawn_labels(pool(108, 19), count, np.random.default_rng(1))
    if kinds is None:
        assert rows is None
        return
    assert len(np.unique(rows)) == count
    assert ((rows < 108).sum(), (rows >= 108).sum()) == kinds


def test_half_of_each_stamp_is_covered_in_squares():
    hidden = few_labels.covers(3, torch.Generator().manual_seed(0))
    assert hidden.shape == (3, 1, few_labels.VIEW, few_labels.VIEW)
    assert hidden.float().mean((1, 2, 3)).tolist() == [few_labels.COVERED] * 3
    squares = hidden.unfold(2, few_labels.PATCH, few_labels.PATCH).unfold(
        3, few_labels.PATCH, few_labels.PATCH
    )
    assert (squares.float().mean((-2, -1)) % 1 == 0).all()


def test_all_methods_learn_what_is_obvious_and_the_gain_is_paired():
    learned, judged = pool(40, 40), pool(15, 15, seed=1)
    encoder, losses = few_labels.pretrain(learned.planes, steps=25)
    assert isinstance(encoder, Encoder)
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    before = [p.clone() for p in encoder.parameters()]
    rows = few_labels.compare("toy", learned, judged, encoder, [10, 200], 1, 20)
    assert all(torch.equal(a, b) for a, b in zip(before, encoder.parameters(), strict=True))
    assert len(rows) == len(few_labels.METHODS)
    assert all(row["auc"] > 0.9 for row in rows)
    # Without stamps to judge, the pool's other objects are.
    assert few_labels.compare("toy", learned, None, encoder, [10], 1, 5)


def test_the_gain_has_students_interval_over_the_draws():
    values = {"measurements": [0.9] * 3, "from nothing": [0.5, 0.6, 0.7], "pretrained": [0.6, 0.6, 0.9]}
    rows = [
        {"stamps": "a", "labels": 10, "seed": s, "method": m, "auc": v[s]}
        for m, v in values.items()
        for s in range(3)
    ]
    row = few_labels.summary(pd.DataFrame(rows)).iloc[0]
    assert row["gain"] == pytest.approx(0.1)
    # t(0.975, 2) = 4.303; the gains 0.1, 0, 0.2 have a standard error of 0.1 / √3.
    assert row["high"] - row["gain"] == pytest.approx(4.303 * 0.1 / np.sqrt(3), rel=1e-3)
    assert row["gain"] - row["low"] == pytest.approx(row["high"] - row["gain"])
