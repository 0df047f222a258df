"""The order of what teaches most: beside a slow obvious twin, and that it saves labels where labels are to be saved."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astrid_pipeline.learning.teaching import COMMON, NEIGHBOURS, feature_space, uncertainty, worth
from astrid_pipeline_tests.benchmarks import teaching as benchmark


def twin(space: np.ndarray, p: np.ndarray, known: np.ndarray) -> list[int]:
    """Pick one by one, everything worked out anew each time."""
    n = len(space)
    between = np.sqrt(((space[:, None] - space[None]) ** 2).sum(axis=2))
    rest = [i for i in range(n) if not known[i]]
    far = {i: np.sort(between[i])[min(NEIGHBOURS, n - 1)] for i in rest}
    scale = np.median(list(far.values()))
    rank = {
        i: (sum(far[j] < far[i] for j in rest) + 0.5 * sum(far[j] == far[i] for j in rest)) / len(rest)
        for i in rest
    }
    told, order = [i for i in range(n) if known[i]], []
    while rest:
        value = {}
        for i in rest:
            nearest = min((between[i, j] for j in told), default=np.inf)
            value[i] = 2 * np.sqrt(p[i] * (1 - p[i])) * (1 - np.exp(-((nearest / scale) ** 2)))
            value[i] *= COMMON + (1 - COMMON) * rank[i]
        best = max(rest, key=lambda i: value[i])
        rest.remove(best)
        told.append(best)
        order.append(best)
    return order


@pytest.mark.parametrize("labelled", [0, 5])
def test_it_is_the_slow_twins_order(labelled):
    rng = np.random.default_rng(labelled)
    space, p = rng.random((40, 3)), rng.uniform(0.01, 0.99, 40)
    known = np.arange(40) < labelled
    found = worth(space, p, known)
    order = np.argsort(-found["worth"].to_numpy(), kind="stable")[: 40 - labelled]
    assert order.tolist() == twin(space, p, known)
    assert (found["worth"][known] == 0).all()
    assert found["worth"][~known].gt(0).all()
    np.testing.assert_allclose(
        found["worth"], found["uncertainty"] * found["diversity"] * found["rarity"], atol=1e-12
    )


def test_the_like_of_what_is_labelled_or_shown_comes_last():
    rng = np.random.default_rng(2)
    space = np.vstack([rng.random((30, 4)), np.full((5, 4), 0.5)])
    p = np.r_[np.full(30, 0.99), np.full(5, 0.5)]
    order = np.argsort(-worth(space, p, np.zeros(35, bool))["worth"].to_numpy(), kind="stable")
    assert order[0] >= 30, "the most uncertain comes first"
    assert set(order[-4:]) == set(range(30, 35)) - {order[0]}, "its doubles come last"
    known = np.zeros(35, bool)
    known[30] = True
    order = np.argsort(-worth(space, p, known)["worth"].to_numpy(), kind="stable")
    assert set(order[-5:]) == set(range(30, 35))


def test_a_shorter_batch_begins_alike_and_never_rises():
    rng = np.random.default_rng(3)
    space, p = rng.random((200, 5)), rng.random(200)
    none = np.zeros(200, bool)
    whole, short = (worth(space, p, none, batch=k)["worth"].to_numpy() for k in (200, 20))
    first = np.argsort(-whole, kind="stable")[:20]
    assert np.argsort(-short, kind="stable")[:20].tolist() == first.tolist()
    assert len(worth(space, p, ~none)) == 200


@given(st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), min_size=1, max_size=30))
def test_ranks_keep_order_and_missing_is_lowest(values):
    column = np.array(values)
    rank = feature_space(column[:, None])[:, 0]
    assert ((rank > 0) & (rank < 1)).all()
    real = ~np.isnan(column)
    assert (np.diff(rank[real][np.argsort(column[real], kind="stable")]) >= 0).all()
    if real.any() and (~real).any():
        assert rank[~real].max() < rank[real].min()


def test_uncertainty_is_1_in_the_middle():
    assert uncertainty([0, 0.5, 1, 0.99]).tolist() == pytest.approx([0, 1, 0, 0.199], abs=1e-3)


def test_savings_of_known_curves():
    labels = np.arange(benchmark.FIRST, benchmark.LAST + 1, benchmark.STEP)
    random = np.tile(labels / 1000, (5, 1))
    other = np.tile(np.minimum(labels / 500, 1.0), (5, 1))
    found = benchmark.saving(random, other, resamples=20)
    assert found.saved == pytest.approx(0.5)
    assert (found.low, found.high) == pytest.approx((0.5, 0.5))
    assert found.at == pytest.approx({500: 250, 1000: 500})
    assert "50% fewer" in str(found)
    never = benchmark.saving(random, random / 3, resamples=20)
    assert never.saved == never.low == 0.0


def test_it_saves_labels_where_most_are_clear(monkeypatch):
    """A made-up queue, one in ten real, whose border is thin: what is not near it teaches little."""
    monkeypatch.setattr(benchmark, "LAST", 400)
    rng = np.random.default_rng(4)

    def queue(n: int) -> pd.DataFrame:
        table = pd.DataFrame(rng.normal(size=(n, 6)), columns=list("abcdef"))
        depth = table["a"] + 0.7 * table["b"] * table["c"] - 1.6
        return table.assign(real=depth > 0, image_id=np.arange(n) // 10, score=0.5)

    pool, held = queue(1500), queue(1500)
    curves = {
        name: np.stack(
            [benchmark.curve(pool, held, tuple("abcdef"), benchmark.ORDERS[name], seed) for seed in range(1)]
        )
        for name in ("random", "worth")
    }
    assert curves["worth"][:, -1].mean() > curves["random"][:, -1].mean()
    assert benchmark.saving(curves["random"], curves["worth"], resamples=10).saved > 0.2
